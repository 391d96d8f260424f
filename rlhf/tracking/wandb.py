"""Weights & Biases: a sweep is a group, a stage a run in it whose id is its fingerprint, and the sweep itself one more run,
which tells what stages its points share. Imported only when used."""

import contextlib
import hashlib
import netrc
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rlhf.catalog.stage import stage_kinds
from rlhf.config.schema import Config
from rlhf.config.secrets import mask, mask_values
from rlhf.experiment.spec import Spec
from rlhf.experiment.sweep import Outcome, Point, Task, final_metrics


class WandbRun:
    """One stage's run. W&B's step is the stage's.

    A stage that begins writes the run anew. A resumed stage (`resumed`) goes on with the run that W&B's server knows, and
    steps that the server has are not sent again: what a resumed stage logs is the same.
    """

    def __init__(self, spec: Spec, resumed: bool) -> None:
        import wandb

        self.wandb = wandb
        directory, name = Path(spec.directory), f"{spec.config.name}-{Path(spec.directory).name}"
        values = mask_values(asdict(spec.config)) | {"inputs": [run_id(parent) for parent in spec.parents]}
        self.run = start_run(spec.config, spec.stage, name, run_id(spec.fingerprint), directory, values, resumed)
        self.first = self.run.step if resumed else 0

    def log(self, step: int, at: float, metrics: dict[str, float]) -> None:
        """Log the metrics of a step, under the names of metrics.jsonl, with the Unix time of the step."""
        if step >= self.first:
            self.run.log({**metrics, "_timestamp": at}, step=step, commit=True)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Log samples as a table, which is sent with the metrics of the same step."""
        if step >= self.first:
            columns: list[Any] = list(rows[0])
            table = self.wandb.Table(columns=columns, data=[[row.get(c) for c in columns] for row in rows])
            self.run.log({"samples": table}, step=step, commit=False)

    def finish(self, exit_code: int) -> None:
        """End the run, as failed if the code is not 0."""
        end_run(self.run, exit_code)


def run_id(fingerprint: str) -> str:
    """Return the id of a stage's run: the same however often it is resumed."""
    return fingerprint[:32]


def start_run(
    config: Config, kind: str, name: str, identity: str, directory: Path, values: dict[str, Any], resumed: bool = False
) -> Any:
    """Start a run that shows `values` as its configuration, with its files in `directory`: the run that the server has of
    this id continued if `resumed`, else anew.

    Offline there is no server to ask. The run is then written whole, and offline files of it that are there already are
    removed: they hold what is written again, and would be synced as the same run.
    """
    import wandb

    settings = config.tracking.wandb
    mode: Any = settings.mode or default_mode()
    for superseded in (directory / "wandb").glob(f"offline-run-*-{identity}"):
        shutil.rmtree(superseded)
    with masked_command():
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or config.name,
            job_type=kind,
            name=name,
            id=identity,
            config=values,
            allow_val_change=True,
            resume="allow" if resumed and mode == "online" else None,
            tags=[kind, *settings.tags],
            dir=str(directory),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )


@contextlib.contextmanager
def masked_command() -> Iterator[None]:
    """Hide the secrets in the command line, which W&B uploads with a run when it starts."""
    words = list(sys.argv)
    sys.argv[:] = [mask(word) for word in words]
    try:
        yield
    finally:
        sys.argv[:] = words


def log_sweep(points: list[Point], tasks: list[Task], outcomes: dict[str, Outcome]) -> None:
    """Log the run of a sweep as a whole: its plan (a row per stage, with the points that share it) and its points (a row
    each, with the runs of their stages and their final metrics)."""
    import wandb

    config, directory = points[0].config, points[0].directory.parent
    identity = hashlib.sha256(f"{config.tracking.wandb.project}/{config.name}".encode()).hexdigest()[:32]
    run = start_run(config, "sweep", config.name, identity, directory, {})
    plan = [
        [task.node.directory.path.name, run_id(task.key), outcomes[task.key].state, ", ".join(task.points)]
        for task in tasks
    ]
    metrics = {name: value for point in points for name, value in final_metrics(point, outcomes).items()}
    rows = []
    for point in points:
        runs = {node.stage: run_id(node.fingerprint) for node in point.stages}
        found = final_metrics(point, outcomes)
        rows.append([point.name, *(runs.get(stage) for stage in stage_kinds()), *(found.get(name) for name in metrics)])
    columns: list[Any] = ["point", *(f"{stage} run" for stage in stage_kinds()), *metrics]
    run.log(
        {
            "plan": wandb.Table(columns=["stage", "run", "state", "points"], data=plan),
            "points": wandb.Table(columns=columns, data=rows),
        }
    )
    end_run(run, 0)


def end_run(run: Any, exit_code: int) -> None:
    """End a run, and wait until W&B's own process has written all of it: `finish` may return before."""
    import wandb

    run.finish(exit_code=exit_code)
    wandb.teardown()


def default_mode() -> str:
    """Online where there is a login, else offline."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "online" if netrc.netrc().authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"
