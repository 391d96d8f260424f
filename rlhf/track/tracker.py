"""Where a stage's metrics and samples go: files always, Weights & Biases and TensorBoard when asked."""

import json
import math
import time
from pathlib import Path
from typing import Any

from rlhf.config.schema import Config
from rlhf.experiment.store import StageDirectory, write_json
from rlhf.track.environment import environment
from rlhf.track.metrics import check_names
from rlhf.track.wandb import WandbRun

STATUS_PERIOD_S = 5.0


class Tracker:
    """Writes a stage's directory; on ranks other than the first it does nothing."""

    def __init__(self, config: Config, stage: str, fingerprint: str, directory: StageDirectory, main: bool) -> None:
        self.directory, self.main = directory, main
        self.last_status = 0.0
        self.wandb: WandbRun | None = None
        self.tensorboard: Any = None
        if not main:
            return
        write_json(directory.path / "environment.json", environment(config))
        if config.tracking.wandb.enabled:
            self.wandb = WandbRun(config, stage, fingerprint, directory.path)
        if config.tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(directory.path / "tensorboard"))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step's metrics, null for what is not finite. Raises KeyError for a name that is not in the table."""
        check_names(metrics)
        if not self.main:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append(self.directory.metrics, {"step": step, "time": time.time(), **finite})
        if self.wandb is not None:
            self.wandb.log(step, metrics)
        if self.tensorboard is not None:
            for name, value in metrics.items():
                self.tensorboard.add_scalar(name, value, step)

    def status(self, step: int, total: int) -> None:
        """Renew the heartbeat, at most every few seconds."""
        if self.main and (step == total or time.monotonic() - self.last_status > STATUS_PERIOD_S):
            self.last_status = time.monotonic()
            self.directory.set_status(state="running", step=step, total=total)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Append prompts with their responses and rewards."""
        if not self.main:
            return
        for row in rows:
            append(self.directory.samples, {"step": step, **row})
        if self.wandb is not None:
            self.wandb.table(step, rows)

    def close(self, exit_code: int) -> None:
        """Flush everything; trackers show a stage whose exit code is not 0 as failed."""
        if self.wandb is not None:
            self.wandb.finish(exit_code)
        if self.tensorboard is not None:
            self.tensorboard.close()


def append(file: Path, value: dict[str, Any]) -> None:
    """Add one JSON line."""
    with file.open("a") as stream:
        stream.write(json.dumps(value) + "\n")
