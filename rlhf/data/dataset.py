"""A data set: its splits, their demonstrations and comparisons."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Comparison:
    """Two responses to a prompt, of which the first was preferred."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Split:
    """Records for the three stages, and how many of a kind in the rows they were read from were left out."""

    demonstrations: list[Demonstration]
    comparisons: list[Comparison]
    prompts: list[str]
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Training and held-out records. `gold` judges (prompt, response) where a true reward is known; training never sees
    it. `agreement` is the accuracy that a perfect judge has on the held-out comparisons, given their label noise."""

    train: Split
    heldout: Split
    gold: Callable[[str, str], float] | None = field(default=None)
    agreement: float | None = field(default=None)
