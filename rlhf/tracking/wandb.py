"""Weights & Biases: a stage is a run whose id is its fingerprint, in the group of its sweep; it reads and makes artifacts
(rlhf/tracking/wandb_artifacts.py). Imported only when used."""

import contextlib
import netrc
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rlhf.catalog.stage import is_stage, kind_of
from rlhf.config.schema import Config
from rlhf.config.secrets import mask, mask_values
from rlhf.experiment.fingerprint import read_values
from rlhf.experiment.lineage import make_maker
from rlhf.experiment.spec import Spec
from rlhf.runtime.compat.wandb import use_artifact
from rlhf.tracking.wandb_artifacts import describe_output, list_inputs

# The characters of a run's name at most.
LONGEST_NAME = 128


class WandbRun:
    """One stage's run: its configuration holds the keys that the stage reads. W&B's step is the stage's.

    A stage that begins writes the run anew. A resumed stage (`resumed`) goes on with the run that W&B's server knows, and
    steps that the server has are not sent again: what a resumed stage logs is the same.
    """

    def __init__(self, spec: Spec, resumed: bool) -> None:
        import wandb

        self.wandb = wandb
        self.maker, self.upload = make_maker(asdict(spec)), spec.config.tracking.wandb.log_model
        values = nest(read_values(spec.config, spec.stage))
        values |= {"fingerprint": spec.fingerprint, "inputs": [run_id(parent) for parent in spec.parents]}
        identity, group = run_id(spec.fingerprint), spec.sweep
        self.run = start_run(spec.config, spec.stage, spec.title, identity, Path(spec.directory), values, group, resumed)
        self.first = self.run.step if resumed else 0
        for artifact, version in () if self.run.disabled else list_inputs(self.maker, self.upload):
            use_artifact(self.run, artifact, version)

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

    @property
    def address(self) -> str | None:
        """The run's page; None offline."""
        found: str | None = None if self.run.offline else self.run.url
        return found

    def alert(self, title: str, text: str) -> None:
        """Send an alert, as the user's settings at W&B have it: by mail or to Slack."""
        self.run.alert(title=title, text=text, level="WARN")

    def finish(self, exit_code: int, metrics: Mapping[str, float] | None = None) -> None:
        """End the run, as failed if the code is not 0. Of a stage that is done the final `metrics` are the run's summary,
        and what the stage made is its artifact."""
        if metrics is not None and not self.run.disabled:
            self.run.summary.update(dict(metrics))
            artifact = describe_output(self.maker, self.upload, metrics)
            if artifact is not None:
                self.run.log_artifact(artifact, aliases=[self.maker.fingerprint])
        self.run.finish(exit_code=exit_code)
        teardown()


def run_id(fingerprint: str) -> str:
    """Return the id of a stage's run: the same however often it is resumed."""
    return fingerprint[:32]


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of dotted keys as nested mappings, without secrets."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        is_mix = isinstance(value, dict) and any(map(is_dataclass, value.values()))
        inner[name] = {member: asdict(own) for member, own in value.items()} if is_mix else value
    masked: dict[str, Any] = mask_values(nested)
    return masked


def start_run(
    config: Config, kind: str, name: str, identity: str, directory: Path, values: dict[str, Any], group: str = "",
    resumed: bool = False,
) -> Any:  # fmt: skip
    """Start a run that shows `values` as its configuration, with its files in `directory`: the run that the server has of
    this id continued if `resumed`, else anew. Its group is `tracking.wandb.group`, else the `group`, else `name`.

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
            group=settings.group or group or config.name,
            job_type=kind,
            name=name[:LONGEST_NAME],
            id=identity,
            config=values,
            allow_val_change=True,
            resume="allow" if resumed and mode == "online" else None,
            tags=list(dict.fromkeys([kind, *name_algorithm(config, kind), *settings.tags])),
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


def name_algorithm(config: Config, kind: str) -> list[str]:
    """Return the algorithm of a stage that has one."""
    return [config.algorithm] if is_stage(kind) and kind_of(kind).samples_responses else []


def teardown() -> None:
    """Wait until W&B's own process has written all of the runs that have ended: `finish` may return before."""
    import wandb

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
