"""What went wrong, what is damaged and what is not there yet."""

from dataclasses import dataclass

from rlhf.catalog.state import BAD
from rlhf.report.collect import Collection, Point
from rlhf.report.stage import Stage


@dataclass(frozen=True)
class Failure:
    """A point or stage with what is wrong with it; `log` is where to read more."""

    what: str
    name: str
    state: str
    reason: str
    log: str | None


def failures(collection: Collection) -> list[Failure]:
    """List the stages, then the points, that failed, were skipped or stopped, or whose files are damaged; what has failed
    comes first."""
    stages = [describe_stage_failure(stage) for stage in collection.stages if stage.state in BAD or stage.notes]
    points = [describe_point_failure(point) for point in collection.points if point.state in BAD or point.notes]
    order = {state: number for number, state in enumerate(BAD)}
    return sorted(stages + points, key=lambda failure: (failure.what != "stage", order.get(failure.state, len(order))))


def describe_stage_failure(stage: Stage) -> Failure:
    """Describe a stage with its own reason, and what is wrong with its files."""
    said = [stage.reason] if stage.reason else ["no reason given"] if stage.state in BAD else []
    return Failure("stage", stage.name, stage.state, "; ".join([*said, *stage.notes]), stage.log)


def describe_point_failure(point: Point) -> Failure:
    """Describe a point with the stages that it lacks, and what is wrong with its own files."""
    lacking = [f"{stage.name} is {stage.state}" for stage in point.stages.values() if stage.state != "done"]
    logs = [stage.log for stage in point.stages.values() if stage.log and stage.state in BAD]
    return Failure("point", point.name, point.state, "; ".join([*point.notes, *lacking]), logs[0] if logs else None)


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
