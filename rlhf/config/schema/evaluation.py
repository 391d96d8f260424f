"""What evaluations of policies and of reward models ask."""

from dataclasses import dataclass

from rlhf.config.metadata import BATCH, COEFFICIENT, COUNT, FROM_ZERO, Range, above_zero, key


@dataclass
class Judge:
    """A language model behind an OpenAI-compatible endpoint that compares answers."""

    url: str | None = key()
    model: str | None = key()
    max_tokens: int = key(COUNT, unit="tokens")
    max_calls: int = key(COUNT)
    parallel: int = key(Range(1, 1000))
    timeout_s: float = key(above_zero(1e5), unit="seconds")
    retries: int = key(Range(0, 100))
    api_key_variable: str = key()
    price_read: float | None = key(COEFFICIENT, unit="US dollars")
    price_written: float | None = key(COEFFICIENT, unit="US dollars")


@dataclass
class Evaluate:
    """The evaluation of a policy (stage=evaluate)."""

    policy: str | None = key(effect="input")
    reference: str | None = key(effect="input")
    prompts: str = key(content="prompts")
    limit: int | None = key(COUNT, unit="prompts")
    samples: int = key(Range(1, 1e4))
    batch_size: int = key(BATCH, effect="speed", unit="answers")
    lm_eval: list[str] = key(neutral=[], content="tasks")
    judge: Judge = key(effect="name")


@dataclass
class EvaluateReward:
    """The evaluation of reward models (stage=evaluate_reward)."""

    model: str | None = key(effect="input")
    policy: str | None = key(effect="input")
    rewardbench: str | None = key(content="records")
    probes: int = key(FROM_ZERO, unit="prompts")
    tokens_per_pass: int = key(COUNT, effect="speed", unit="tokens")
