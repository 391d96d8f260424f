"""The evaluation of a policy: its answers to prompts, and what the rewards, gold and a reference say of them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlhf.catalog.metric import POLICY_EVALUATION, Metric
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Counts, Input, Records, StageKind, Work
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import count_reward_models, stage_reward, trained_terms
from rlhf.config.schema import Config
from rlhf.experiment.lineage import trained_from
from rlhf.planner.ppo import longest_step
from rlhf.stages.ppo import more_models, without_idle_reward

# The stages that make a policy, the one that counts first.
POLICIES = ("ppo", "dpo", "sft")


def made_by(config: Config) -> str:
    """Return the stage whose policy is evaluated where `evaluate.policy` names none: the last of those that run."""
    return next((stage for stage in POLICIES if stage in config.stages), "ppo")


def is_made_by(stage: str, config: Config) -> bool:
    """Whether a stage makes the policy."""
    return made_by(config) == stage


def is_reference_named(config: Config) -> bool:
    """Whether the model is named that the KL is measured to."""
    return config.evaluate.reference is not None


def find_start(config: Config) -> tuple[Input, ...]:
    """Return the model that the KL is measured to where none is named: what a policy of this configuration is trained
    from."""
    if is_reference_named(config) or config.evaluate.policy is not None or made_by(config) == "sft":
        return ()
    return (Input("reference", "ppo.actor" if made_by(config) == "ppo" else "dpo.policy", "sft"),)


def more_inputs(config: Config) -> tuple[Input, ...]:
    """Return the reference, and the reward models beside the reward stage's own."""
    return (*find_start(config), *more_models(config))


def roles(config: Config) -> list[Role]:
    """Return the policy, the reference, and the reward models; none of them learns."""
    read = [Role(config.model, config.zero, None)]
    if is_reference_named(config) or find_start(config):
        read.append(Role(config.model, config.reference_zero, None))
    judge = Role(config.reward_model, config.reward_zero, None, scorer=True)
    return [*read, *[judge] * count_reward_models(config)]


def simplify(config: Config) -> Config:
    """Return the configuration with the reference by name, where the directory of the policy says what it was trained from;
    without the reward stage where nothing starts from its model."""
    evaluate = config.evaluate
    if evaluate.policy is not None and evaluate.reference is None:
        config = replace(config, evaluate=replace(evaluate, reference=trained_from(evaluate.policy)))
    return without_idle_reward(config) if stage_reward(config) is None else config


def phase_flops(config: Config, answers: int) -> dict[str, int]:
    """Return the operations of a step by phase. The policy reads its answers whoever's log-probabilities it was trained
    with."""
    return longest_step(replace(config, ppo=replace(config.ppo, old_logprobs="actor")))


def count_records(config: Config, counts: Counts) -> Records:
    """Prompts."""
    from rlhf.evaluation.prompts import read_prompts

    asked, limit = config.evaluate.prompts, config.evaluate.limit
    number = counts.prompts if asked == "heldout" else len(read_prompts(asked))
    return Records("prompts", "prompts", number if limit is None else min(limit, number))


def name_tasks(config: Config) -> str:
    """Name the tasks of lm-evaluation-harness, whose requests are known when the harness has made them."""
    return f"lm-eval tasks ({', '.join(config.evaluate.lm_eval)})" if config.evaluate.lm_eval else ""


def problems(config: Config) -> Iterator[ConfigError]:
    """Find prompts that are in no file, tasks that cannot be had, half a judge, and a judge of policies that are trained
    here: it compares the answers of two, which `python -m rlhf evaluate` has."""
    from rlhf.evaluation.harness import find_problems

    yield from find_problems(config.evaluate.lm_eval)
    named = config.evaluate.prompts
    if named not in ("heldout", "deepspeed-chat") and not Path(named).expanduser().is_file():
        fix = "write heldout, deepspeed-chat, or the path of a .jsonl file whose lines have a `prompt`"
        yield ConfigError("evaluate.prompts", named, "there is no such file", fix)

    judge = config.evaluate.judge
    if judge.url is not None and not judge.url.startswith(("http://", "https://")):
        fix = "give one, as http://127.0.0.1:8000/v1"
        yield ConfigError("evaluate.judge.url", judge.url, "it is no address of an endpoint", fix)
    if (judge.url is None) != (judge.model is None):
        key = "model" if judge.model is None else "url"
        fix = "give both evaluate.judge.url and evaluate.judge.model, or neither"
        yield ConfigError(f"evaluate.judge.{key}", None, "a judge has an address and a model", fix)
    elif judge.url is not None and config.evaluate.policy is None:
        fix = "leave it out here, and give it to `python -m rlhf evaluate DIR DIR` when the policies are trained"
        yield ConfigError("evaluate.judge.url", judge.url, "a judge compares two policies, and this stage has one", fix)


def check(config: Config, inputs: Mapping[str, str]) -> None:
    """Look at the prompts of a file, at tasks, at the models that are given by path and at the functions that judge. Raises
    ConfigError."""
    from rlhf.evaluation.harness import load_data, open_tasks
    from rlhf.evaluation.prompts import read_prompts
    from rlhf.models.preflight import check_source  # which imports torch
    from rlhf.models.source import Source
    from rlhf.stages.ppo.rewards import check_functions

    if config.evaluate.prompts != "heldout":
        read_prompts(config.evaluate.prompts)
    for name, given in (("actor", config.evaluate.policy), ("reference", config.evaluate.reference)):
        if given is not None:
            check_source(Source(inputs[name], f"evaluate.{'policy' if name == 'actor' else name}"), config, scorer=False)
    if config.evaluate.lm_eval:
        (open_tasks if config.dry_run else load_data)(config.evaluate.lm_eval)
    check_functions(config)


def more_metrics(config: Config) -> tuple[Metric, ...]:
    """Return the metrics of each reward where there are several, and pass@k where prompts have several samples."""
    names = ["_".join(("reward", name)) for name in trained_terms(config)]
    found = [
        Metric(f"eval/{name}", "reward", f"mean raw score of rewards.{name[7:]}", f"mean score of {name[7:]}", name[7:],
            format="{:.2f}", final=True, detail=1, error=True)
        for name in names
    ]  # fmt: skip
    most = config.evaluate.samples
    powers = sorted({*(2**i for i in range(most.bit_length())), most})
    return (*found, *(pass_metric(k, by) for by in ("reward", "gold", *names) for k in powers))


def pass_metric(k: int, by: str) -> Metric:
    """Return the metric pass@k by a score."""
    kind = f"pass_{k}"
    return Metric(f"eval/{kind}_{by}", "share", f"chance that one of {k} answers at least is right by {by}",
        f"pass@{k} by {by}", f"pass@{k}, {by}", format="{:.2f}", final=True, detail=1, error=True)  # fmt: skip


METRICS = (
    Metric("eval/gold", "gold", "mean gold reward of the policy's answers",
        "gold reward of the policy", "gold", format="{:.2f}", final=True, better=1, error=True),
    Metric("eval/reward", "reward", "mean score of the policy's answers",
        "mean score of the policy", "score", format="{:.2f}", final=True, error=True),
    Metric("eval/kl_sequence", "nats", "KL to the reference per answer (k1)",
        "KL to the reference per response", "KL", format="{:.2f}", final=True, error=True),
    Metric("eval/kl_sequence_k3", "nats", "KL to the reference per answer by the k3 estimator",
        "KL per response (k3)", "KL k3", format="{:.2f}", final=True, detail=1, error=True),
    Metric("eval/kl_token", "nats", "KL to the reference per token (k1)",
        "KL per token", "KL/token", format="{:.3f}", final=True, detail=1, error=True),
    Metric("eval/kl_token_k3", "nats", "KL to the reference per token by the k3 estimator",
        "KL per token (k3)", "KL/token k3", format="{:.3f}", final=True, detail=1, error=True),
    Metric("eval/loss", "nats", "held-out loss per token of the demonstrations' responses",
        "held-out loss", "loss", format="{:.3f}", final=True, detail=1, error=True),
    Metric("eval/perplexity", "", "exp of the held-out loss", "perplexity of the evaluated policy", "perplexity, evaluated",
        format="{:.2f}", final=True, better=-1, error=True),
    Metric("eval/length", "tokens", "mean answer length",
        "mean length of the policy", "length", format="{:.1f}", final=True, error=True),
    Metric("eval/unended", "share", "answers that were cut at rollout.max_new_tokens",
        "unended answers", "unended", format="{:.1%}", final=True, detail=1, error=True),
    next(metric for metric in POLICY_EVALUATION if metric.name == "eval/entropy"),
    Metric("eval/repetition", "share", "3-grams of words of an answer that came before in it",
        "repeated 3-grams", "repetition", format="{:.1%}", final=True, detail=1, error=True),
    Metric("eval/distinct_1", "share", "different words among all words of all answers",
        "distinct-1", "distinct-1", format="{:.3f}", final=True, detail=1),
    Metric("eval/distinct_2", "share", "different 2-grams of words among those of all answers",
        "distinct-2", "distinct-2", format="{:.3f}", final=True, detail=1),
    pass_metric(1, "reward"),
    Metric("data/prompts", "prompts", "prompts that were answered"),
    Metric("data/demonstrated", "prompts", "held-out prompts with a demonstration, which the loss is over"),
    Metric("data/prompts_dropped", "prompts", "prompts left out because they do not fit data.max_prompt_tokens"),
)  # fmt: skip

KIND = StageKind(
    name="evaluate",
    run="rlhf.stages.evaluate.run:run",
    result_keys=("seed", "precision", "data", "evaluate", "rollout", "rewards", "gold"),
    unread_keys=lambda config: ("rollout.samples_per_prompt",),
    metrics=METRICS,
    more_metrics=more_metrics,
    headline=("eval/reward",),
    compared=(("eval/gold", "eval/reward", "eval/kl_sequence", "eval/length"),),
    step="part",
    page="rlhf.report.policies:write_stage_page",
    evaluates="actor",
    inputs=(
        *(Input("actor", "evaluate.policy", stage, is_used=partial(is_made_by, stage)) for stage in POLICIES),
        Input("reference", "evaluate.reference", is_used=is_reference_named),
        Input("reward", "ppo.reward", "reward", is_used=lambda config: stage_reward(config) is not None),
    ),
    more_inputs=more_inputs,
    model_keys=("model", "reward_model"),
    roles=roles,
    records=count_records,
    reads=lambda config: "prompts",
    phase_flops=phase_flops,
    work=lambda config: Work(1, phase_flops(config, 1)["rollout"]),
    uncounted=name_tasks,
    simplify=simplify,
    problems=problems,
    check=check,
    measures=lambda config: [],
)
