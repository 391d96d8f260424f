"""What the schema says of a key beside its name and type: the values that it may hold and what they decide."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

# What a key decides. `result`: it is in the fingerprint of the stages that read it. `input`: it names a model, which is in
# the fingerprint by what it is. `speed`: beyond rounding it changes nothing. `name`: it changes nothing at all: names,
# paths, what is kept of a result, and when a run gives up. A benchmark's result is a speed: all but names are in its
# fingerprint.
Effect = Literal["result", "input", "speed", "name"]
# What the value of a key counts as in a fingerprint: the content of a model, or of files of records or texts, that its path
# names; the source of a function, where it is the dotted path of one; the content of a Jinja file, where it is the path of
# one; a `share` of the different prompts, not of the rows; the sets of a mixture, each by its own keys; the content of a
# file of prompts, where it is the path of one; the names of tasks, with the content of files of tasks; or a number of
# passes, where 2.0 is 2.
Content = Literal["model", "records", "function", "template", "share", "mixture", "prompts", "tasks", "passes"]

# The value of a key that the planner decides, with the hardware (rlhf/planner/auto.py).
AUTO = "auto"
# The largest whole number that torch, JSON readers and SLURM take alike.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; an end that is open does not belong to them."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether the number lies inside; NaN lies in no range."""
        above = self.low < value if self.open_low else self.low <= value
        return bool(above and (value < self.high if self.open_high else value <= self.high))

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.high >= LARGEST else f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"

    def nearest(self, value: float) -> float:
        """Return a number inside the range that is near to the value."""
        if value in self:
            return value
        low = self.low + (min(1.0, (self.high - self.low) / 2) if self.open_low else 0)
        high = low if self.open_high else self.high
        return high if value > self.high else low


def above_zero(high: float) -> Range:
    """Return the numbers above 0, up to `high`."""
    return Range(0, high, open_low=True)


COUNT, FROM_ZERO, FINITE, WHOLE = Range(1, 1e9), Range(0, 1e9), Range(-1e9, 1e9), Range(0, LARGEST)
BATCH = Range(1, 1e7)
# Shares of a whole that are never all of it, as dropout.
SHARE = Range(0, 1, open_high=True)
# Learning rates: AdamW moves a weight by about the learning rate in a step.
RATE = Range(0, 1)
COEFFICIENT = Range(0, 1e6)
# What SLURM and a scheduler count.
RESOURCE = Range(1, 1e6)


@dataclass(frozen=True)
class Metadata:
    """What the schema says of a key or of a group of keys.

    Attributes:
        range: The numbers that it may hold.
        choices: The words or numbers that it may hold; those of a list's items.
        effect: What it decides; None where its group says it.
        neutral: The value at which a stage is what it was before the key existed: a key at its neutral value is left out of
            the fingerprint, so that stages of earlier releases are found. `...`: there is none.
        only_with: A key of the same group that switches this key on: where that key has its neutral value, this key does
            nothing and is left out of the fingerprint too.
        content: What the path that it holds counts as in a fingerprint.
        unit: The unit of its number.
        once: Whether a sweep has one value of it for all points: it holds for the command, not for a stage.
        auto: Whether it may be `auto`, which rlhf/planner/auto.py replaces by what the hardware calls for. Its type is Any.
        optional: Whether it may be null too, where its type does not say so.
    """

    range: Range | None = None
    choices: tuple[Any, ...] = ()
    effect: Effect | None = None
    neutral: Any = ...
    only_with: str | None = None
    content: Content | None = None
    unit: str = ""
    once: bool = False
    auto: bool = False
    optional: bool = False


def key(
    range: Range | None = None, *, choices: tuple[Any, ...] = (), effect: Effect | None = None, neutral: Any = ...,
    only_with: str | None = None, content: Content | None = None, unit: str = "", once: bool = False,
    auto: bool = False, optional: bool = False,
) -> Any:  # fmt: skip
    """Declare a key or a group of the schema, with its metadata; its value comes from conf/."""
    metadata = Metadata(range, choices, effect, neutral, only_with, content, unit, once, auto, optional)
    return field(default=MISSING, metadata={"key": metadata})
