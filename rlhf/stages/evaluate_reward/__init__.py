"""The evaluation of reward models: what their scores of held-out pairs, of probes and of RewardBench say of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rlhf.catalog.metric import Metric
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Counts, Input, Records, StageKind, Work
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import gold_term, reward_terms
from rlhf.config.schema import Config
from rlhf.evaluation.reward.probes import PROBES
from rlhf.planner.flops import forward_flops
from rlhf.planner.memory import record_tokens
from rlhf.stages.ppo import more_models


def is_policy_named(config: Config) -> bool:
    """Whether a policy is named whose log-probabilities the scores are correlated with."""
    return config.evaluate_reward.policy is not None


def more_inputs(config: Config) -> tuple[Input, ...]:
    """Return the further members of an ensemble, and the data set that another stage makes, where the reward stage whose
    models are evaluated has them."""
    if config.evaluate_reward.model is not None:
        return ()
    members = tuple(given for given in more_models(config) if given.stage == "reward")
    data = () if config.reward.data is None else (Input("data", "reward.data", "best_of_n", holds="data"),)
    return (*members, *data)


def roles(config: Config) -> list[Role]:
    """Return the reward models and the policy, each held by itself; none of them learns."""
    count = 1 + sum(given.holds == "model" for given in more_inputs(config))
    policy = [Role(config.model, config.reference_zero, None)] if is_policy_named(config) else []
    return [Role(config.reward_model, config.reward_zero, None, scorer=True)] * count + policy


def count_records(config: Config, counts: Counts) -> Records:
    """Pairs of answers."""
    return Records("pairs", "pairs", counts.comparisons)


def count_flops(config: Config) -> int:
    """Operations of reading a pair of the longest texts with each model."""
    return sum(forward_flops(role.model, [record_tokens(config)] * KIND.sequences(config), 0) for role in roles(config))


def find_unread(config: Config) -> tuple[str, ...]:
    """Return the rewards that do not judge: all but the gold one."""
    return tuple(f"rewards.{name}" for name in reward_terms(config) if name != config.gold)


def problems(config: Config) -> Iterator[ConfigError]:
    """Find a file of RewardBench that is not there, and a gold reward that is a model."""
    file, gold = config.evaluate_reward.rewardbench, gold_term(config)
    if file is not None and not Path(file).expanduser().is_file():
        fix = "give the path of a file of RewardBench, as filtered.parquet"
        yield ConfigError("evaluate_reward.rewardbench", file, "there is no such file", fix)
    if gold is not None and gold.kind == "model":
        fix = "name a function or a service, or leave gold out"
        yield ConfigError("gold", config.gold, "it is a reward model, which others are not judged by in this stage", fix)


def check(config: Config, inputs: Mapping[str, str]) -> None:
    """Look at the models that are given by path. Raises ConfigError."""
    from rlhf.models.preflight import check_source  # which imports torch
    from rlhf.models.source import Source

    keys = config.evaluate_reward
    for name, given in (("model", keys.model), ("policy", keys.policy)):
        if given is not None:
            path = inputs["reward" if name == "model" else name]
            check_source(Source(path, f"evaluate_reward.{name}"), config, scorer=name == "model")


def measure(
    name: str, unit: str, description: str, label: str, short: str = "", detail: int = 1, better: int = 0
) -> Metric:
    """Declare a final metric with a standard error."""
    return Metric(f"eval/{name}", unit, description, label, short, "{:.3f}", better, True, detail, error=True)


METRICS = (
    measure("accuracy", "share", "held-out pairs that the reward model orders as the labels do; a tie is half of one",
        "evaluated accuracy", "accuracy, evaluated", detail=0, better=1),
    measure("accuracy_longer", "share", "held-out accuracy where the preferred answer has more tokens",
        "accuracy, preferred answer longer", "chosen longer"),
    measure("accuracy_shorter", "share", "held-out accuracy where the preferred answer has fewer tokens",
        "accuracy, preferred answer shorter", "chosen shorter", detail=0, better=1),
    measure("accuracy_gold", "share", "held-out pairs that the reward model orders as the gold reward does, ties left out",
        "accuracy against gold", "against gold", better=1),
    measure("loss", "nats", "held-out loss per pair", "evaluated loss", "loss, evaluated"),
    measure("brier", "share", "squared difference between the preferred answer's probability and 1", "Brier score", "Brier",
        better=-1),
    measure("calibration_error", "share",
        "held-out |accuracy - confidence|, mean over pairs in ten bins of confidence: sigmoid of the margin's size",
        "calibration error", "calibration error", detail=0, better=-1),
    measure("ties", "share", "held-out pairs whose two answers score the same", "ties"),
    measure("margin", "reward", "mean score of the preferred minus the other answer, held-out", "margin"),
    measure("correlation_length", "", "rank correlation of the score with the answer's tokens", "correlation with length",
        "length correlation", detail=0),
    measure("correlation_gold", "", "rank correlation of the score with the gold reward", "correlation with gold"),
    measure("correlation_logprob", "", "rank correlation of the score with the policy's log-probability of the answer",
        "correlation with log-probability"),
    measure("disagreement", "reward", "standard deviation of an answer's scores over the members of the ensemble",
        "disagreement"),
    *(measure(f"probe_{name}", "share", f"prompts whose worse answer the model prefers: {what}", f"prefers {name}", name)
        for name, (what, _) in PROBES.items()),
    measure("rewardbench", "share", "RewardBench 1: mean of its four sections", "RewardBench", better=1),
    measure("rewardbench2", "share", "RewardBench 2: mean of its six subsets", "RewardBench 2", better=1),
    Metric("data/pairs", "pairs", "held-out pairs that were read"),
)  # fmt: skip

KIND = StageKind(
    name="evaluate_reward",
    run="rlhf.stages.evaluate_reward.run:run",
    result_keys=("seed", "precision", "data", "evaluate_reward", "rewards", "gold"),
    unread_keys=find_unread,
    metrics=METRICS,
    headline=("eval/accuracy",),
    compared=(("eval/accuracy", "eval/accuracy_shorter", "eval/calibration_error", "eval/correlation_length"),),
    step="model",
    page="rlhf.report.reward_model:write_stage_page",
    evaluates="reward",
    inputs=(
        Input("reward", "evaluate_reward.model", "reward"),
        Input("policy", "evaluate_reward.policy", is_used=is_policy_named),
    ),
    more_inputs=more_inputs,
    model_keys=("reward_model", "model"),
    roles=roles,
    sequences=lambda config: 2,  # a pair has two answers
    records=count_records,
    reads=lambda config: "comparisons",
    share=1,
    phase_flops=lambda config, answers: {"score": count_flops(config)},
    work=lambda config: Work(1, count_flops(config)),
    problems=problems,
    check=check,
    measures=lambda config: [],
)
