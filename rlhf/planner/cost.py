"""What a graph of stages takes as a whole: its time on so many slots, its cost, and the calls of a judge after it."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.planner.plan import StagePlan


@dataclass(frozen=True)
class Step:
    """A stage of a graph: its key, those of the stages it needs, and its plan."""

    key: str
    parents: tuple[str, ...]
    plan: StagePlan


@dataclass(frozen=True)
class Totals:
    """Sums over a graph; None where a stage's steps are not known.

    Attributes:
        fits: Whether all stages fit.
        seconds: From the start of the first stage to the end of the last, on `slots` slots.
        slots: How many stages run at a time.
        gpu_hours: Device-hours.
        dollars: US dollars.
    """

    fits: bool
    seconds: float | None
    slots: int
    gpu_hours: float | None
    dollars: float | None


def add_up(steps: Sequence[Step], slots: int) -> Totals:
    """Sum the plans of stages, parents before the stages that need them."""
    seconds = {step.key: step.plan.total_seconds for step in steps}
    known = {key: value for key, value in seconds.items() if value is not None}
    whole = len(known) == len(seconds)
    return Totals(
        fits=all(step.plan.fits for step in steps),
        seconds=find_makespan({step.key: step.parents for step in steps}, known, slots) if whole else None,
        slots=slots,
        gpu_hours=sum(step.plan.gpu_hours or 0.0 for step in steps) if whole else None,
        dollars=sum(step.plan.dollars or 0.0 for step in steps) if whole else None,
    )


def find_makespan(graph: Mapping[str, Sequence[str]], seconds: Mapping[str, float], slots: int) -> float:
    """Return when the last stage ends if each starts, in order, as soon as its parents are done and a slot is free.

    Args:
        graph: The stages that each stage needs, in an order in which they can run.
        seconds: What each stage takes.
        slots: How many stages run at a time.
    """
    ends: dict[str, float] = {}
    free = [0.0] * max(1, min(slots, len(graph)))
    for key, parents in graph.items():
        ready = max((ends[parent] for parent in parents if parent in ends), default=0.0)
        start = max(ready, heapq.heappop(free))
        ends[key] = start + seconds[key]
        heapq.heappush(free, ends[key])
    return max(ends.values(), default=0.0)


@dataclass(frozen=True)
class JudgeCalls:
    """The calls of a language model that judges answers.

    Attributes:
        model: The name of the model.
        number: How many calls there are to make; None where that depends on records that are not here.
        answered: How many more were answered before.
        read: The tokens that it reads, about.
        written: The tokens that it writes at most.
        dollars: What that costs at most, in US dollars; None where its prices are not known.
        is_bound: Whether calls and tokens are the most that there can be, since what it reads is not there yet.
    """

    model: str
    number: int | None
    answered: int = 0
    read: int = 0
    written: int = 0
    dollars: float | None = None
    is_bound: bool = False

    def describe(self) -> str:
        """Say how many calls there are, and what they cost."""
        if self.number is None:
            return f"judge: the calls of {self.model} depend on records that are not here"
        bound, about = (" at most", "at most") if self.is_bound else ("", "about")
        told = f"judge: {self.number:,} calls of {self.model}{bound}, {self.answered:,} answered before"
        told += f", {about} {self.read:,} tokens read and at most {self.written:,} written"
        return told if self.dollars is None else f"{told}, ${self.dollars:,.2f} at most"
