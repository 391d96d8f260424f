"""What `status` shows of stages and sweeps, with the time and the cost that are left of them."""

from collections import Counter
from dataclasses import dataclass, field, replace

from rlhf.catalog.stage import kind_of, stage_kinds
from rlhf.catalog.state import SETTLED, STATES, most_urgent
from rlhf.config.terminal import plural
from rlhf.experiment.plan import describe_remaining
from rlhf.planner.remaining import Planned, Progress, Remaining, add_up_remaining, correct_left


@dataclass(frozen=True)
class Stage:
    """A stage as its files describe it; `rate` is in steps per second, times are in seconds.

    The time that is left is the plan's, corrected by the stage's own speed, or before it begins by that of others;
    `spent_s` is what the stage took so far, `seconds` what it took in all.
    """

    name: str
    directory: str
    stage: str
    state: str
    reason: str | None = None
    points: list[str] = field(default_factory=list)
    step: float | None = None
    total: float | None = None
    rate: float | None = None
    left_s: float | None = None
    seconds: float | None = None
    figure: str | None = None
    label: str | None = None
    unit: str | None = None
    value: float | None = None
    kl: float | None = None
    host: str | None = None
    job: str | None = None
    attempts: float | None = None
    heartbeat_age_s: float | None = None
    planned: Planned | None = None
    spent_s: float | None = None
    alarms: str | None = None


@dataclass(frozen=True)
class View:
    """What is shown at one time: each sweep's points with the names of their stages, how many stages it runs at a time, and
    all stages."""

    sweeps: dict[str, dict[str, list[str]]]
    at_once: dict[str, int]
    stages: list[Stage]


def correct_times(stages: list[Stage]) -> list[Stage]:
    """Return the stages with the time that is left of those that have not begun, by the speed of the others."""
    left = correct_left({stage.name: progress_of(stage) for stage in stages})
    waiting = [stage.name for stage in stages if stage.state in ("planned", "queued", "starting")]
    return [replace(stage, left_s=left[stage.name]) if stage.name in waiting else stage for stage in stages]


def progress_of(stage: Stage, parents: tuple[str, ...] = ()) -> Progress:
    """Return how far a stage is; a stage that is skipped or has failed takes no more time until it is launched again."""
    settled, done = stage.state in SETTLED, stage.state == "done"
    left = 0.0 if settled else stage.left_s
    return Progress(stage.stage, parents, stage.planned, stage.spent_s or 0.0, left, failed=settled and not done)


def sweep_remaining(points: dict[str, list[str]], at_once: int, stages: list[Stage]) -> Remaining:
    """Return what a sweep is still to take, and what it took; each stage counts once."""
    known = {stage.name: stage for stage in stages}
    kinds = list(stage_kinds())
    parents: dict[str, tuple[str, ...]] = {}
    for names in points.values():
        for name in names:
            inputs = kind_of(known[name].stage).inputs if known[name].stage in kinds else ()
            needed = {given.stage for given in inputs}
            parents[name] = tuple(other for other in names if known[other].stage in needed)
    order = sorted(parents, key=lambda name: kinds.index(known[name].stage) if known[name].stage in kinds else len(kinds))
    return add_up_remaining({name: progress_of(known[name], parents[name]) for name in order}, at_once)


def sort_key(stage: Stage) -> tuple[int, int, str]:
    """Return the order of rows: what goes on or went wrong above what is done, then along the graph."""
    known = list(stage_kinds())
    return list(STATES).index(stage.state), known.index(stage.stage) if stage.stage in known else len(known), stage.name


def heading(sweep: str, points: dict[str, list[str]], at_once: int, stages: list[Stage]) -> str:
    """Return a sweep in a line: its points by state, and what it is still to take."""
    order, states = list(STATES), {stage.name: stage.state for stage in stages}
    worst = Counter(most_urgent(states[name] for name in names) for names in points.values())
    counts = [f"{worst[state]} {state}" for state in order[:-1] if worst[state]]
    unsettled = any(states[name] not in SETTLED for names in points.values() for name in names)
    left = describe_remaining(sweep_remaining(points, at_once, stages)) if unsettled else ""
    done = f"{worst['done']} of {plural(len(points), 'point')} done"
    return f"sweep {sweep}: {', '.join([done, *counts])}{'; ' if left else ''}{left}"
