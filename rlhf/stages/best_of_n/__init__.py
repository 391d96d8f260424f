"""Best-of-n as data: a policy answers each prompt n times, the rewards judge, and the best response becomes a record."""

from collections.abc import Iterator, Mapping, Sequence

from rlhf.catalog.metric import POLICY_EVALUATION, Metric
from rlhf.catalog.role import Role
from rlhf.catalog.sampler import sampler_problem
from rlhf.catalog.stage import Counts, Input, Records, Side, StageKind
from rlhf.config.derive import divisors, ranks
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.rewards import has_gold, name_models, reward_terms, stage_reward
from rlhf.config.schema import ZEROS, BestOfN, Config
from rlhf.config.sections import with_rewards
from rlhf.planner.cache import list_prompts_read
from rlhf.planner.flops import forward_flops, generation_flops
from rlhf.stages.ppo import more_models
from rlhf.stages.ppo.rewards import check_functions, gold_problems, reward_problems


def keep_judges(config: Config) -> Config:
    """Return a configuration whose rewards are those that judge: where gold does the gold one alone, if it is one of
    them."""
    if config.best_of_n.judge == "rewards":
        return config
    terms = reward_terms(config)
    return with_rewards(config, {name: terms[name] for name in terms if name == config.gold})


def judges(config: Config) -> int:
    """Count the reward models that judge."""
    return len({model for models in name_models(keep_judges(config)).values() for model in models})


def roles(config: Config) -> list[Role]:
    """Return the policy and the reward models, none of which learns."""
    judge = Role(config.reward_model, config.reward_zero, None, scorer=True)
    return [Role(config.model, config.zero, None), *[judge] * judges(config)]


def count_flops(config: Config, prompts: Sequence[int], responses: Sequence[int]) -> dict[str, int]:
    """Operations of sampling responses of these lengths after prompts of these lengths, one for each response, and of
    judging them."""
    lengths = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    read = list_prompts_read(config.rollout, prompts)
    return {
        "rollout": generation_flops(config.model, prompts, responses, None, read),
        "score": judges(config) * forward_flops(config.reward_model, lengths, 0),
    }


def phase_flops(config: Config, answers: int) -> dict[str, int]:
    """Operations of a step if every prompt and response were as long as it may be."""
    own = max(1, config.best_of_n.batch_size // ranks(config))
    lengths = [config.data.max_prompt_tokens] * own, [config.rollout.max_new_tokens] * own
    return {phase: ranks(config) * flops for phase, flops in count_flops(config, *lengths).items()}


def count_records(config: Config, counts: Counts) -> Records:
    """Prompts."""
    most = config.best_of_n.max_prompts
    return Records("prompts", "prompts", counts.prompts if most is None else min(counts.prompts, most))


def more_inputs(config: Config) -> tuple[Input, ...]:
    """Return the reward models that judge beside the reward stage's own."""
    return more_models(keep_judges(config))


def unread_keys(config: Config) -> tuple[str, ...]:
    """Return the keys that decide nothing where the best response stands alone."""
    return ("best_of_n.rival",) if config.best_of_n.format == "responses" else ()


def problems(config: Config) -> Iterator[ConfigError]:
    """Find what nothing can be chosen by or of, and responses that ranks cannot share."""
    made, rollout = config.best_of_n, config.rollout
    if made.judge == "gold":
        if not has_gold(config):
            yield ConfigError("best_of_n.judge", "gold", "there is no gold reward", "name one, as gold=vader")
        yield from gold_problems(config)
    else:
        yield from reward_problems(config)
    copies = rollout.samples_per_prompt
    if made.format == "pairs" and copies == 1:
        problem, fix = "a pair takes two responses to a prompt", "set it to 8, or best_of_n.format=responses"
        yield ConfigError("rollout.samples_per_prompt", copies, problem, fix)
    if copies > 1 and not rollout.do_sample:
        yield ConfigError("rollout.do_sample", False, "all responses to a prompt would be the same", "set it true")
    if rollout.fixed_length:
        problem = "with responses of fixed length none ends, and what does not end is never the best"
        yield ConfigError("rollout.fixed_length", True, problem, "set it false")
    unit = copies * ranks(config)
    if made.batch_size % unit:
        problem = f"it is not a multiple of {copies} responses to a prompt on {ranks(config)} ranks"
        yield ConfigError("best_of_n.batch_size", made.batch_size, problem, f"try {unit * -(-made.batch_size // unit)}")
    own = made.batch_size // ranks(config)
    if isinstance(rollout.micro_batch_size, int) and own % rollout.micro_batch_size:
        problem, fix = f"it does not divide the {own} responses of a rank", f"try one of {divisors(own)}, or null"
        yield ConfigError("rollout.micro_batch_size", rollout.micro_batch_size, problem, fix)
    if (unserved := sampler_problem(config)) is not None:
        yield unserved


def check(config: Config, inputs: Mapping[str, str]) -> None:
    """Look at the policy and the reward models that are given by path, and at the functions. Raises ConfigError."""
    from rlhf.models.preflight import check_source  # which imports torch
    from rlhf.models.source import Source

    for given in KIND.find_inputs(config):
        if given.stage is None or get_key(config, given.key) is not None:
            model = config.model if given.name == "actor" else config.reward_model
            source = Source(inputs[given.name], given.key, trust_remote_code=model.trust_remote_code)
            check_source(source, config, scorer=given.name != "actor")
    check_functions(keep_judges(config))


def powers(config: Config) -> list[int]:
    """Return the n that held-out responses tell the best of: powers of two, up to those that are sampled."""
    return [2**power for power in range(config.rollout.samples_per_prompt.bit_length())]


def metrics_of_best(n: int) -> tuple[Metric, ...]:
    """Return what is measured of the best of so many responses."""
    words = f"mean over held-out prompts, of the best of {n} by the judge, from all that were sampled without bias"
    return tuple(
        Metric(f"eval/{name}_best_of_{n}", name, f"{what}, {words}",
            f"{what}, best of {n}", f"{name}, best of {n}", format="{:.2f}", final=True, detail=1, error=True)
        for name, what in (("gold", "gold reward"), ("reward", "score"))
    )  # fmt: skip


def more_metrics(config: Config) -> tuple[Metric, ...]:
    """Return what is measured of the best of 1, 2, 4, ... responses."""
    return tuple(metric for n in powers(config) for metric in metrics_of_best(n))


# What a policy's evaluation has too: `eval/gold` and `eval/reward` are the best response's, `eval/gold_sft` that of all.
SHARED = ("eval/gold_sft", "eval/gold", "eval/gold_sft_std", "eval/reward")

METRICS = (
    Metric("reward/mean", "reward", "mean score of the step's responses, by the judge",
        "score of responses", "score", format="{:.2f}", axis="score"),
    Metric("reward/best", "reward", "mean over the step's prompts of the score of the best response",
        "score of the best response", "best", format="{:.2f}", axis="score"),
    Metric("length/response", "tokens", "mean response length, end-of-text included"),
    Metric("length/ended", "share", "responses that reached end-of-text or a stop text"),
    Metric("data/records", "records", "training records that were made", "records made", "records",
        format="{:.0f}", final=True),
    Metric("data/ties", "prompts", "training prompts left out: the best response and its rival have one score or text"),
    Metric("data/unended", "responses", "responses to training prompts that did not come to their end: never the best"),
    Metric("data/unscored", "responses", "responses to training prompts that no reward applies to"),
    Metric("data/left_out", "prompts", "training prompts with no response (of pairs, fewer than two) that may be chosen"),
    *(metric for metric in POLICY_EVALUATION if metric.name in SHARED),
    *metrics_of_best(2),
    Metric("eval/kl_bound", "nats", "bound of the KL of best-of-n to the policy: log n - (n - 1) / n (arXiv 2401.01879)",
        "KL of best-of-n, at most", "KL bound", format="{:.2f}", final=True),
)  # fmt: skip

KIND = StageKind(
    name="best_of_n",
    run="rlhf.stages.best_of_n.run:run",
    result_keys=("seed", "precision", "data", "best_of_n", "rollout", "rewards", "gold", *ZEROS),
    unread_keys=unread_keys,
    schema=BestOfN,
    section="best_of_n",
    metrics=METRICS,
    more_metrics=more_metrics,
    headline=("eval/gold", "reward/best", "throughput/samples_per_s"),
    sides=(Side("best", "best"), Side("rival", "rival")),
    inputs=(
        Input("actor", "best_of_n.policy", "sft"),
        Input("reward", "ppo.reward", "reward", is_used=lambda config: stage_reward(keep_judges(config)) is not None),
    ),
    more_inputs=more_inputs,
    model_keys=("model", "reward_model"),
    roles=roles,
    copies=lambda config: config.rollout.samples_per_prompt,
    records=count_records,
    reads=lambda config: "prompts",
    phase_flops=phase_flops,
    resolve=lambda config, inputs: keep_judges(config),
    problems=problems,
    check=check,
)  # fmt: skip
