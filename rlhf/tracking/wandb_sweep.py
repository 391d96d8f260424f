"""W&B's runs of a sweep: one of each point, which links its stages and uses what they made, and one of the sweep as a
whole, with its configuration and its plan; and where runs lie that were written offline."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import stage_kinds
from rlhf.config.keys import get_key, keys_of
from rlhf.config.terminal import split_apart
from rlhf.experiment.lineage import read_maker
from rlhf.experiment.sweep import Outcome, Point, Task, final_metrics
from rlhf.runtime.compat.wandb import use_artifact
from rlhf.tracking.wandb import nest, run_id, start_run, teardown
from rlhf.tracking.wandb_artifacts import describe_output


def log_sweep(points: Sequence[Point], tasks: Sequence[Task], outcomes: dict[str, Outcome]) -> None:
    """Log the runs of a sweep's points, and the run of the sweep as a whole: its plan (a row per stage, with the points
    that share it) and its points (a row each, with the runs of their stages and their final metrics)."""
    import wandb

    titles = {name: " ".join(parts) or name for name, parts in split_apart([point.name for point in points]).items()}
    for point in points:
        log_point(point, titles[point.name], outcomes)
    config, directory = points[0].config, points[0].directory.parent
    run = start_run(
        config, "sweep", directory.name, name_run(points[0]), directory, describe_points(points), directory.name
    )
    plan = [
        [task.node.directory.path.name, run_id(task.key), outcomes[task.key].state, ", ".join(task.points)]
        for task in tasks
    ]
    metrics = {name: value for point in points for name, value in final_metrics(point, outcomes).items()}
    rows = []
    for point in points:
        runs = {node.stage: run_id(node.fingerprint) for node in point.stages}
        found = final_metrics(point, outcomes)
        rows.append([titles[point.name], *(runs.get(stage) for stage in stage_kinds()), *map(found.get, metrics)])
    columns: list[Any] = ["point", *(f"{stage} run" for stage in stage_kinds()), *metrics]
    run.log(
        {
            "plan": wandb.Table(columns=["stage", "run", "state", "points"], data=plan),
            "points": wandb.Table(columns=columns, data=rows),
        }
    )
    run.finish(exit_code=0)
    teardown()


def log_point(point: Point, title: str, outcomes: dict[str, Outcome]) -> None:
    """Log the run of a point: its whole configuration, the runs of its stages, what they made, and its final metrics."""
    config, ended = point.config, [outcomes[node.fingerprint] for node in point.stages]
    values = nest({key: get_key(config, key) for key in keys_of(type(config))})
    values |= {"runs": {node.name: run_id(node.fingerprint) for node in point.stages}, "overrides": point.overrides}
    sweep = point.directory.parent.name
    run = start_run(config, "point", f"point {title}", name_run(point, point.name), point.directory, values, sweep)
    for node, outcome in zip(point.stages, ended, strict=True):
        maker = read_maker(str(node.directory.model)) if outcome.good and not run.disabled else None
        artifact = None if maker is None else describe_output(maker, config.tracking.wandb.log_model)
        if maker is not None and artifact is not None:
            use_artifact(run, artifact, maker.fingerprint)
    run.summary.update(final_metrics(point, outcomes))
    run.finish(exit_code=int(any(outcome.state in ("failed", "skipped") for outcome in ended)))


def name_run(point: Point, name: str = "") -> str:
    """Return the id of the run of a sweep, or of the point of it that has this name: the same whenever it is typed."""
    text = f"{point.config.tracking.wandb.project}/{point.directory.parent.name}/{name}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def describe_points(points: Sequence[Point]) -> dict[str, Any]:
    """Return the configuration of a sweep: the values that all its points share, and those that it sweeps over, as
    lists."""
    known: Any = type(points[0].config)
    values = {key: [get_key(point.config, key) for point in points] for key in keys_of(known)}
    shared = {key: found[0] for key, found in values.items() if all(value == found[0] for value in found)}
    swept = {key: list(dict.fromkeys(map(str, found))) for key, found in values.items() if key not in shared}
    return nest(shared) | {"swept": nest(swept), "points": len(points)}


def gather_offline_runs(points: Sequence[Point]) -> tuple[Path, int]:
    """Link the runs that the stages of some points wrote offline beside those of the sweep, or of the run, itself. Returns
    the directory, and how many runs are in it."""
    first = points[0]
    directory = (first.directory if first.sweep is None else first.directory.parent) / "wandb"
    owners = [node.directory.path for point in points for node in point.stages]
    owners += [point.directory for point in points if point.sweep is not None]
    found = {run.name: run for owner in owners for run in sorted((owner / "wandb").glob("offline-run-*"))}
    for link in directory.glob("offline-run-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()  # of a run that was written anew
    for name, run in found.items():
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(os.path.relpath(run, directory))
    return directory, len(list(directory.glob("offline-run-*")))
