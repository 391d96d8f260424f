"""Weights & Biases: a stage is a run whose id is its fingerprint, a name is a group. Imported only when used."""

import netrc
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rlhf.config.schema import Config


class WandbRun:
    """One stage's run."""

    def __init__(self, config: Config, stage: str, fingerprint: str, directory: Path) -> None:
        import wandb

        settings = config.tracking.wandb
        self.wandb = wandb
        mode: Any = settings.mode or default_mode()
        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or config.name,
            job_type=stage,
            name=f"{config.name}-{stage}-{fingerprint[:12]}",
            id=fingerprint[:32],
            resume="allow",
            tags=[stage, *settings.tags],
            config=asdict(config),
            dir=str(directory),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric("*", step_metric="stage_step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One step's metrics, under the names of metrics.jsonl."""
        self.run.log({**metrics, "stage_step": step})

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Samples as a table."""
        if rows:
            columns: list[Any] = list(rows[0])
            table = self.wandb.Table(columns=columns, data=[[row.get(c) for c in columns] for row in rows])
            self.run.log({"samples": table, "stage_step": step})

    def finish(self, exit_code: int) -> None:
        """End the run, as failed if the code is not 0."""
        self.run.finish(exit_code=exit_code)


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
