"""Where a stage's metrics and samples go: files always, Weights & Biases and TensorBoard when asked."""

import contextlib
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from rlhf.experiment.spec import Spec, stage_directory
from rlhf.experiment.store import write_json
from rlhf.track.environment import environment
from rlhf.track.metrics import check_names
from rlhf.track.wandb import WandbRun

HEARTBEAT_PERIOD_S = 5.0


class Tracker:
    """Writes a stage's directory; on ranks other than the first it does nothing."""

    def __init__(self, spec: Spec, main: bool) -> None:
        self.directory, self.main, self.config = stage_directory(spec), main, spec.config
        self.started, self.spent = time.monotonic(), 0.0
        self.wandb: WandbRun | None = None
        self.tensorboard: Any = None
        self.progress: dict[str, int] = {}
        self.closing = threading.Event()
        if not main:
            return
        write_json(self.directory.path / "environment.json", environment(spec.config))
        if spec.config.tracking.wandb.enabled:
            self.wandb = WandbRun(spec)
        self.heart = threading.Thread(target=self.beat, daemon=True)
        self.heart.start()

    @property
    def seconds(self) -> float:
        """Wall time of the stage: of this attempt, and of those before it up to where it was resumed."""
        return self.spent + time.monotonic() - self.started

    @property
    def files(self) -> dict[str, Path]:
        """The files that grow by a line at a time."""
        return {"metrics": self.directory.metrics, "samples": self.directory.samples}

    def written(self) -> dict[str, int]:
        """How long each of `files` is now, in bytes, once it has reached the disk."""
        lengths = {}
        for name, file in self.files.items():
            if file.exists():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                lengths[name] = file.stat().st_size
        return lengths

    def resume(self, written: dict[str, int], step: int, spent: float) -> None:
        """Go back to where `files` were so long, after `step` steps and `spent` seconds; or to the beginning."""
        self.spent = spent
        if not self.main:
            return
        for name, file in self.files.items():
            if name in written:
                os.truncate(file, written[name])
            else:
                file.unlink(missing_ok=True)
        if self.config.tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(self.directory.path / "tensorboard"), purge_step=step + 1)

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
        """Say how far the stage is."""
        self.progress = {"step": step, "total": total}

    def beat(self) -> None:
        """Renew the heartbeat with what `status` was told last, until the tracker is closed."""
        while not self.closing.wait(HEARTBEAT_PERIOD_S):
            with contextlib.suppress(OSError):  # a full disk; what cannot be saved says so itself
                self.directory.set_status(state="running", **self.progress)

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
        if self.main:
            self.closing.set()
            self.heart.join()
            with contextlib.suppress(OSError):  # nor may it hide why the stage ends
                self.directory.set_status(**self.progress)
        if self.wandb is not None:
            self.wandb.finish(exit_code)
        if self.tensorboard is not None:
            self.tensorboard.close()


def append(file: Path, value: dict[str, Any]) -> None:
    """Add one JSON line."""
    with file.open("a") as stream:
        stream.write(json.dumps(value) + "\n")
