"""What went wrong, what is damaged and what is not there yet."""

from dataclasses import dataclass

from rlhf.catalog.state import BAD
from rlhf.report.collect import Collection, Point
from rlhf.report.stage import Stage


@dataclass(frozen=True)
class Failure:
    """A point or stage with what is wrong with it; `log` is where to read more, and `points` those that lack its result."""

    what: str
    name: str
    state: str
    reason: str
    log: str | None
    points: tuple[str, ...] = ()


def failures(collection: Collection) -> list[Failure]:
    """List what went wrong, each once and what has failed first: the stages that failed, stopped or are damaged, those that
    were skipped for one reason together, and the points of which no stage tells it."""
    bad = [stage for stage in collection.stages if stage.state in BAD or stage.notes]
    told = {stage.path for stage in bad}
    skipped: dict[str, list[Stage]] = {}
    for stage in bad:
        if stage.state == "skipped" and not stage.notes:
            skipped.setdefault(stage.reason or "", []).append(stage)
    alone = {stage.path for stages in skipped.values() for stage in stages if len(stages) == 1}
    stages = [
        describe_stage_failure(collection, stage)
        for stage in bad
        if stage.state != "skipped" or stage.notes or stage.path in alone
    ]
    stages += [describe_skipped(found, reason) for reason, found in skipped.items() if len(found) > 1]
    points = [
        describe_point_failure(point)
        for point in collection.points
        if point.notes or (point.state in BAD and not any(stage.path in told for stage in point.stages.values()))
    ]
    order = {state: number for number, state in enumerate(BAD)}
    return sorted(stages + points, key=lambda failure: (failure.what != "stage", order.get(failure.state, len(order))))


def describe_stage_failure(collection: Collection, stage: Stage) -> Failure:
    """Describe a stage with its own reason, and what is wrong with its files."""
    said = [stage.reason] if stage.reason else ["no reason given"] if stage.state in BAD else []
    points = () if stage.state == "done" else tuple(collection.name_users(stage))
    return Failure("stage", stage.name, stage.state, "; ".join([*said, *stage.notes]), stage.log, points)


def describe_skipped(stages: list[Stage], reason: str) -> Failure:
    """Describe stages that were skipped for one reason."""
    return Failure("stage", f"{stages[0].name} and {len(stages) - 1} more", "skipped", reason, None)


def describe_point_failure(point: Point) -> Failure:
    """Describe a point with what is wrong with its own files, and the stages that it lacks."""
    lacking = [f"{stage.name} is {stage.state}" for stage in point.stages.values() if stage.state != "done"]
    return Failure("point", point.name, point.state, "; ".join([*point.notes, *lacking]), None)


def missing(collection: Collection) -> list[str]:
    """List the stages that have not been run, or not to their end, and are not failures: one line each, with the steps
    done."""
    waiting = [stage for stage in collection.stages if stage.state != "done"]
    return [f"{stage.name}: {stage.state}{progress(stage)}" for stage in waiting if stage.state not in BAD]


def progress(stage: Stage) -> str:
    """Write how far an unfinished stage is, as ` at step 3 of 40`."""
    if stage.step is None:
        return ""
    return f" at step {stage.step:,}" + (f" of {stage.total:,}" if stage.total else "")
