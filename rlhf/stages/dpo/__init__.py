"""Direct preference optimisation and its kin: a policy learns from pairs, or from responses with a label, without a reward
model and without sampling. It is evaluated by answers that it samples, as every policy is."""

from collections.abc import Iterator, Mapping

from rlhf.catalog.metric import POLICY_EVALUATION, TRAINING, Metric
from rlhf.catalog.preferences import COMPARED, compared_by, needs_mismatched, weigh_losses
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Card, Counts, Input, Reads, Records, Side, StageKind
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.rewards import count_reward_models
from rlhf.config.schema import Config, Dpo
from rlhf.planner.flops import forward_flops, training_flops
from rlhf.stages.dpo.rewards import choose_judges, list_judges, list_unread
from rlhf.stages.ppo.rewards import check_functions, term_problems


def roles(config: Config) -> list[Role]:
    """Return the model that learns, which is its own reference before its first step, and the reward models that judge."""
    judges = [Role(config.reward_model, config.reward_zero, None, scorer=True)] * count_reward_models(choose_judges(config))
    return [Role(config.model, config.zero, config.lora, recomputed=config.dpo.gradient_checkpointing), *judges]


def choose_records(config: Config) -> Reads:
    """Return the kind of records that it reads."""
    return "labelled" if config.dpo.unpaired else "comparisons"


def count_records(config: Config, counts: Counts) -> Records:
    """Pairs of answers, or answers with a label."""
    if config.dpo.unpaired:
        return Records("labelled responses", "labelled responses", counts.labelled)
    return Records("pairs", "pairs", counts.comparisons, 2)


def work(config: Config, lengths: list[int]) -> int:
    """Operations of a step on sequences of these lengths, which are also those of mismatched responses, where a loss reads
    such."""
    how = config.lora, config.dpo.gradient_checkpointing, config.dpo.dropout
    flops = training_flops(config.model, lengths, sum(lengths), *how)
    if needs_mismatched(config.dpo):
        flops += forward_flops(config.model, lengths, sum(lengths), config.lora)
    return flops


def phase_flops(config: Config, answers: int) -> dict[str, int]:
    """Operations of a step on pairs, at most."""
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    return {"train": answers * config.dpo.batch_size * work(config, [longest])}


def problems(config: Config) -> Iterator[ConfigError]:
    """Find losses that cannot be summed, weights that no loss reads, and rewards that cannot judge."""
    yield from term_problems(choose_judges(config))
    dpo = config.dpo
    if dpo.unpaired:
        yield from unpaired_problems(dpo)
        return
    for loss, weight in (dpo.mix or {}).items():
        key, own = f"dpo.mix.{loss}", compared_by(dpo.loss, dpo)
        summed = [name for name in COMPARED if name != dpo.loss and compared_by(name, dpo) == own]
        fix = f"add {' or '.join(summed)}" if summed else "leave dpo.mix out; dpo.nll_coef adds a likelihood term"
        if loss not in COMPARED:
            yield ConfigError(key, weight, "there is no such loss", fix)
        elif loss == dpo.loss:
            yield ConfigError(key, weight, "that is dpo.loss, whose weight is 1", fix)
        elif compared_by(loss, dpo) != own:
            problem = (
                f"it compares {compared_by(loss, dpo)} and dpo.loss={dpo.loss} {own}, for which one beta has two scales"
            )
            yield ConfigError(key, weight, problem, fix)
        elif isinstance(weight, bool | str) or weight is None or not 0 < weight < 1e6:
            yield ConfigError(key, weight, "a weight is a number above 0", f"give one, as dpo.mix={{{loss}: 0.5}}")
    for name in ("desirable_weight", "undesirable_weight"):
        if getattr(dpo, name) != 1 and "kto" not in weigh_losses(dpo):
            yield ConfigError(f"dpo.{name}", getattr(dpo, name), f"dpo.loss={dpo.loss} does not read it", "leave it out")
    if dpo.ipo_sums and "ipo" not in weigh_losses(dpo):
        yield ConfigError(
            "dpo.ipo_sums", True, f"dpo.loss={dpo.loss} does not read it", "leave it out, or add dpo.loss=ipo"
        )
    yield from weight_problems(dpo)


def unpaired_problems(dpo: Dpo) -> Iterator[ConfigError]:
    """Find what compares the responses of a pair, where single responses are read."""
    if dpo.loss != "kto":
        problem = f"dpo.loss={dpo.loss} compares the two responses of a pair"
        yield ConfigError("dpo.unpaired", True, problem, "choose dpo.loss=kto, or leave dpo.unpaired out")
    if dpo.mix:
        fix = "leave dpo.mix or dpo.unpaired out"
        yield ConfigError("dpo.mix", dpo.mix, "its losses compare the two responses of a pair", fix)
    if dpo.nll_coef:
        problem = "it is of the chosen response of a pair, and dpo.unpaired=true reads none"
        yield ConfigError("dpo.nll_coef", dpo.nll_coef, problem, "set it 0, or leave dpo.unpaired out")
    yield from weight_problems(dpo)


def weight_problems(dpo: Dpo) -> Iterator[ConfigError]:
    """Find weights of which nothing is left."""
    if dpo.desirable_weight == dpo.undesirable_weight == 0:
        yield ConfigError("dpo.desirable_weight", 0, "dpo.undesirable_weight is 0 too", "give one of them above 0")


def check(config: Config, inputs: Mapping[str, str]) -> None:
    """Look at the models that are given by path, at the adapters that the policy may have, and at the functions that judge.
    Raises ConfigError."""
    from rlhf.models.adapters import check_new_adapters
    from rlhf.models.source import Source

    source = Source(inputs["policy"], "dpo.policy", trust_remote_code=config.model.trust_remote_code)
    check_new_adapters(config, "lora", source)
    for given in KIND.find_inputs(config):
        is_model = given.holds == "model" and given.name in inputs
        if is_model and not given.is_made(get_key(config, given.key)):
            from rlhf.models.preflight import check_source  # which imports torch

            is_policy = given.name == "policy"
            trusted = (config.model if is_policy else config.reward_model).trust_remote_code
            found = Source(inputs[given.name], given.key, trust_remote_code=trusted)
            check_source(found, config, scorer=not is_policy)
    check_functions(choose_judges(config))


METRICS = (
    Metric("train/loss", "nats", "training loss of the step: per pair or labelled response",
        "training loss", "loss", format="{:.3f}", axis="nats per pair or response"),
    Metric("train/accuracy", "share",
        "pairs of the step whose chosen response has the higher implicit reward, or labelled responses whose implicit "
        "reward is on their label's side of KTO's reference point; a tie is half of one",
        "training accuracy", "pair accuracy", format="{:.2f}", axis="share of pairs or responses"),
    *TRAINING,
    Metric("train/reward_chosen", "", "implicit reward of the step's chosen or desirable responses"),
    Metric("train/reward_rejected", "", "implicit reward of the step's rejected or undesirable responses"),
    Metric("train/logp_chosen", "nats", "log-probability of the step's chosen or desirable responses"),
    Metric("train/logp_rejected", "nats", "log-probability of the step's rejected or undesirable responses"),
    Metric("train/kl_estimate", "nats", "KTO's estimate of the KL to the reference, from responses to other prompts"),
    Metric("data/desirable", "responses", "desirable responses to learn from"),
    Metric("data/undesirable", "responses", "undesirable responses to learn from"),
    Metric("data/ties", "pairs", "pairs whose two responses are the same, which teach and measure nothing"),
    Metric("eval/loss", "nats", "held-out loss per pair or labelled response", error=True),
    Metric("eval/accuracy", "share",
        "held-out pairs whose chosen response has the higher implicit reward, or labelled responses whose implicit "
        "reward is on their label's side of KTO's reference point; a tie is half of one",
        "accuracy of the implicit reward", "pair accuracy", format="{:.3f}", final=True, better=1, error=True),
    Metric("eval/accuracy_initial", "share", "eval/accuracy of the model that training started from: 1/2 of the reference",
        error=True),
    Metric("eval/margin", "",
        "mean implicit reward of the chosen or desirable minus that of the rejected or undesirable responses, held-out",
        "margin of the implicit reward", "margin", format="{:.3f}", final=True, detail=1, error=True),
    Metric("eval/logp_chosen", "nats", "mean log-probability of held-out chosen or desirable responses"),
    Metric("eval/logp_rejected", "nats", "mean log-probability of held-out rejected or undesirable responses"),
    *POLICY_EVALUATION,
)  # fmt: skip

KIND = StageKind(
    name="dpo",
    run="rlhf.stages.dpo.train:run",
    result_keys=("seed", "precision", "lora", "data", "dpo", "rollout", "rewards", "gold", "zero", "reward_zero"),
    unread_keys=lambda config: ("rollout.samples_per_prompt", *list_unread(config)),
    schema=Dpo,
    section="dpo",
    metrics=METRICS,
    headline=("eval/accuracy", "train/accuracy", "train/loss", "throughput/samples_per_s"),
    compared=(("eval/gold", "eval/reward", "eval/kl_sequence", "eval/length"),),
    sides=(Side("sft", "SFT"), Side("dpo", "DPO")),
    inputs=(
        Input("policy", "dpo.policy", "sft"),
        Input("data", "dpo.data", "best_of_n", is_used=lambda config: config.dpo.data is not None, holds="data"),
    ),
    more_inputs=list_judges,
    model_keys=("model", "reward_model"),
    trained=("zero",),
    roles=roles,
    sequences=lambda config: 1 if config.dpo.unpaired else 2,  # a pair has two answers
    records=count_records,
    reads=choose_records,
    share=1,  # as in DeepSpeed-Chat, whose DPO takes the place of its step 2
    phase_flops=phase_flops,
    problems=problems,
    check=check,
    cards={"dpo": Card("a language model trained on preferences, without a reward model")},
)  # fmt: skip
