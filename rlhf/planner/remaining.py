"""How much of a stage, and of a graph of stages, is still to come: the plan, corrected by the speed that was measured.

Pure: no torch. Seconds, unless a name says otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from rlhf.planner.cost import find_makespan
from rlhf.planner.plan import HOUR, StagePlan

# Phases of a plan that are not a part of each step.
BESIDE_STEPS = ("load", "evaluate", "save")
# A pause between two steps that is this many times as long as most is no step's own time: an evaluation, a checkpoint, a
# restart.
PAUSE = 10.0


@dataclass(frozen=True)
class Planned:
    """What was planned of a stage when it was launched, as its plan.json keeps it.

    Attributes:
        steps: Its steps; None where they were not known.
        seconds: From its start to its end; None where its steps were not known.
        phases: Seconds by phase.
        evaluations: How often it evaluates, before its first step and after its last one included.
        gib_per_gpu: Memory on a device in the phase that takes most.
        devices: How many devices it holds while it runs.
        price: US dollars for a device and hour.
        answers: The answers that a record of comparisons has at most.
    """

    steps: int | None
    seconds: float | None
    phases: dict[str, float]
    evaluations: int
    gib_per_gpu: float
    devices: int
    price: float
    answers: int = 2

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step; None where the plan has none."""
        stepping = sum(seconds for phase, seconds in self.phases.items() if phase not in BESIDE_STEPS)
        return stepping / self.steps if self.steps and stepping > 0 else None

    def gpu_hours(self, seconds: float) -> float:
        """Return the device-hours of so many seconds."""
        return seconds / HOUR * self.devices

    def dollars(self, seconds: float) -> float:
        """Return what so many seconds cost, in US dollars."""
        return self.gpu_hours(seconds) * self.price


def summarize_plan(plan: StagePlan) -> Planned:
    """Return what a stage keeps of its plan."""
    return Planned(
        plan.steps,
        plan.total_seconds,
        plan.phases,
        plan.evaluations,
        plan.peak / 2**30,
        plan.devices,
        plan.price,
        plan.answers,
    )


def measure_pace(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the seconds per step that (steps done, time) show, without pauses. After a kill a stage may take steps twice:
    that does not count either. None for fewer than two points."""
    return average_pace([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points) if b[0] > a[0] and b[1] > a[1]])


def average_pace(paces: Sequence[float]) -> float | None:
    """Return the mean of some seconds per step, without pauses; None for none."""
    return mean(pace for pace in paces if pace <= PAUSE * median(paces)) if paces else None


def seconds_left(planned: Planned | None, step: float, total: float, pace: float | None) -> float | None:
    """Return the seconds from the end of a step to the end of a stage.

    Steps are to take `pace` seconds each, and evaluations are to be as much slower or faster than planned as the steps
    were. Without a pace the plan is believed; without a plan nothing but steps is counted.

    Args:
        planned: What was planned of the stage.
        step: The steps that are done.
        total: All its steps.
        pace: The seconds of a step that were measured.
    """
    own = None if planned is None else planned.step_seconds
    each = own if pace is None else pace
    if each is None:
        return None
    left = max(0.0, total - step)
    if planned is None or own is None:
        return left * each
    later = planned.evaluations - 1  # all but the one before the first step
    to_come = later - int(later * step / total) if total > 0 else 0
    evaluation = planned.phases.get("evaluate", 0.0) * to_come / max(1, planned.evaluations)
    saving = planned.phases.get("save", 0.0) * (left / total if total > 0 else 0.0)
    return left * each + evaluation * each / own + saving


def measure_slowdowns(ended: Iterable[tuple[str, float | None, float]]) -> dict[str, float]:
    """Return how many times as long as planned stages took, by kind, and under "" over all kinds.

    Args:
        ended: Of each stage that is done its kind, the seconds that were planned, and those that it took.
    """
    sums: dict[str, tuple[float, float]] = {}
    for kind, planned, spent in ended:
        if planned:
            for key in (kind, ""):
                before = sums.get(key, (0.0, 0.0))
                sums[key] = before[0] + planned, before[1] + spent
    return {kind: spent / planned for kind, (planned, spent) in sums.items()}


def correct_seconds(kind: str, seconds: float | None, slowdowns: Mapping[str, float]) -> float | None:
    """Return the seconds of a stage that has not begun, as others of its kind took, or else as all others did."""
    return None if seconds is None else seconds * slowdowns.get(kind, slowdowns.get("", 1.0))


@dataclass(frozen=True)
class Progress:
    """How far a stage of a graph is.

    Attributes:
        kind: Its kind.
        parents: The stages of the graph that it needs.
        planned: What was planned of it.
        spent: Seconds that it took so far.
        left: Seconds that it is still to take, by its own speed; None where it has not begun.
        failed: Whether it ended before its time, so that its seconds say nothing of others.
    """

    kind: str
    parents: tuple[str, ...]
    planned: Planned | None
    spent: float = 0.0
    left: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Remaining:
    """What a graph of stages took so far, and is still to take; None where the plan of a stage is not known.

    Attributes:
        seconds: To the end of the last stage.
        spent_gpu_hours: Device-hours so far.
        spent_dollars: US dollars so far.
        left_dollars: US dollars to come.
    """

    seconds: float | None
    spent_gpu_hours: float
    spent_dollars: float
    left_dollars: float | None


def correct_left(stages: Mapping[str, Progress]) -> dict[str, float | None]:
    """Return the seconds that each stage is still to take. A stage that has not begun is as much slower or faster than
    planned as others of its kind were, or else as all others were."""
    measured = [s for s in stages.values() if s.planned is not None and not s.failed]
    slowdowns = measure_slowdowns(
        (s.kind, s.planned.seconds, s.spent + s.left) for s in measured if s.planned and s.left is not None
    )
    return {
        key: s.left if s.left is not None else correct_seconds(s.kind, s.planned.seconds if s.planned else None, slowdowns)
        for key, s in stages.items()
    }


def add_up_remaining(stages: Mapping[str, Progress], slots: int) -> Remaining:
    """Sum what stages took and are still to take, parents before the stages that need them, so many at a time."""
    left = correct_left(stages)
    known = {key: seconds for key, seconds in left.items() if seconds is not None}
    whole = len(known) == len(left)
    plans = {key: s.planned for key, s in stages.items() if s.planned is not None}
    return Remaining(
        seconds=find_makespan({key: s.parents for key, s in stages.items()}, known, slots) if whole else None,
        spent_gpu_hours=sum(plan.gpu_hours(stages[key].spent) for key, plan in plans.items()),
        spent_dollars=sum(plan.dollars(stages[key].spent) for key, plan in plans.items()),
        left_dollars=sum(plan.dollars(known[key]) for key, plan in plans.items() if key in known) if whole else None,
    )
