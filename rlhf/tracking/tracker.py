"""Where a stage's metrics and samples go: files always, Weights & Biases and TensorBoard when asked."""

import contextlib
import json
import math
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.catalog.health import Alarm, HealthWatch
from rlhf.catalog.stage import check_metrics
from rlhf.experiment.lock import LockLost
from rlhf.experiment.spec import Spec, stage_directory
from rlhf.experiment.store import write_atomic
from rlhf.tracking.environment import environment
from rlhf.tracking.tensorboard import TensorboardRun
from rlhf.tracking.wandb import WandbRun

HEARTBEAT_PERIOD_S = 5.0


class Tracker:
    """Writes a stage's directory; on ranks other than the first it does nothing.

    metrics.jsonl and samples.jsonl are the record. W&B and TensorBoard are copies of it: a resumed stage takes the two
    files from its checkpoint and writes the copies anew, so that each step is in them once.
    """

    def __init__(self, spec: Spec, main: bool) -> None:
        self.directory, self.main, self.spec = stage_directory(spec), main, spec
        self.started, self.spent = time.monotonic(), 0.0
        self.wandb: WandbRun | None = None
        self.tensorboard: TensorboardRun | None = None
        self.progress: dict[str, int] = {}
        self.health, self.alarms = HealthWatch(), dict[str, int]()
        self.stop_reason: str | None = None
        self.closing = threading.Event()
        if not main:
            return
        self.directory.write_environment(environment(spec.config))
        self.heart = threading.Thread(target=self.beat, daemon=True)
        self.heart.start()

    @property
    def seconds(self) -> float:
        """Wall time of the stage: of this attempt, and of those before it up to where it was resumed."""
        return self.spent + time.monotonic() - self.started

    @property
    def files(self) -> dict[str, Path]:
        """The files that grow by a line at a time."""
        return {"metrics": self.directory.metrics_file, "samples": self.directory.samples_file}

    def save(self, directory: Path) -> list[Path]:
        """Copy `files`, as they are now, into the directory of a checkpoint; returns the copies."""
        there = [file for file in self.files.values() if file.exists()]
        return [shutil.copyfile(file, directory / file.name) for file in there]

    def resume(self, saved: Path | None, step: int, spent: float) -> None:
        """Go back to the `files` of a checkpoint's directory, saved after `step` steps and `spent` seconds; without one, to
        the beginning. Whatever has become of the files meanwhile, they are then what they were."""
        self.spent = spent
        if not self.main:
            return
        self.directory.check_lock()
        for file in self.files.values():
            if saved is not None and (saved / file.name).is_file():
                write_atomic(file, (saved / file.name).read_text())
            else:
                file.unlink(missing_ok=True)
        self.health, self.alarms, self.stop_reason = HealthWatch(), {}, None
        for row in filter(None, self.directory.metrics()):
            self.alarms |= {alarm.name: alarm.step for alarm in self.health.add(row["step"], row)}
        self.directory.set_status(alarms=describe_alarms(self.alarms))
        self.start_copies(step)

    def start_copies(self, step: int) -> None:
        """Start the trackers that were asked for, and bring them up to `step` with what was logged so far."""
        tracking = self.spec.config.tracking
        if tracking.wandb.enabled:
            self.wandb = WandbRun(self.spec, resumed=step > 0)
            self.directory.set_status(wandb=self.wandb.address)
        if tracking.tensorboard:
            self.tensorboard = TensorboardRun(self.spec)
        if self.wandb is None and self.tensorboard is None:
            return
        samples: dict[int, list[dict[str, Any]]] = {}
        for row in filter(None, self.directory.samples()):
            samples.setdefault(row["step"], []).append(row)
        for row in filter(None, self.directory.metrics()):
            self.copy_samples(row["step"], row["time"], samples.get(row["step"], []))
            self.copy_metrics(row)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step's metrics, null for what is not finite. Raises KeyError for a name that the stage does not
        declare, and LockLost."""
        check_metrics(self.spec.stage, metrics, self.spec.config)
        if not self.main:
            return
        self.directory.check_lock()
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        row = {"step": step, "time": time.time(), **finite}
        append(self.directory.metrics_file, row)
        self.copy_metrics(row)
        for alarm in self.health.add(step, metrics):
            self.sound(alarm)

    def sound(self, alarm: Alarm) -> None:
        """Tell of an alarm that begins: on the terminal, in status.json, and to W&B; note whether it is to stop the stage
        (`health.stop`)."""
        told = f"alarm {alarm.name} at step {alarm.step}: {alarm.text}"
        print(told, flush=True)
        self.alarms[alarm.name] = alarm.step
        self.directory.set_status(alarms=describe_alarms(self.alarms))
        if self.wandb is not None:
            self.wandb.alert(f"{self.directory.path.name}: {alarm.name}", told)
        if alarm.name in self.spec.config.health.stop and alarm.step != self.progress.get("total"):
            self.stop_reason = told

    def copy_metrics(self, row: dict[str, Any]) -> None:
        """Give W&B and TensorBoard a line of metrics.jsonl."""
        step, at = row["step"], row["time"]
        metrics = {name: math.nan if value is None else value for name, value in row.items() if "/" in name}
        if self.wandb is not None:
            self.wandb.log(step, at, metrics)
        if self.tensorboard is not None:
            self.tensorboard.log(step, at, metrics)

    def copy_samples(self, step: int, at: float, rows: list[dict[str, Any]]) -> None:
        """Give W&B and TensorBoard the lines of samples.jsonl of a step, before the step's metrics."""
        if self.wandb is not None and rows:
            self.wandb.table(step, rows)
        if self.tensorboard is not None and rows:
            self.tensorboard.text(step, at, rows)

    def status(self, step: int, total: int) -> None:
        """Note for the heartbeat how far the stage is."""
        self.progress = {"step": step, "total": total}

    def beat(self) -> None:
        """Renew the heartbeat, with the progress that `status` noted last, until the tracker is closed."""
        while not self.closing.wait(HEARTBEAT_PERIOD_S):
            try:
                with contextlib.suppress(OSError):  # a full disk; what cannot be saved says so itself
                    self.directory.set_status(state="running", seconds=self.seconds, **self.progress)
            except LockLost:
                return  # the next line that is logged says so

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Append prompts with their responses and rewards; to be called before the step's metrics are logged."""
        if not self.main:
            return
        self.directory.check_lock()
        rows = [{"step": step, **row} for row in rows]
        for row in rows:
            append(self.directory.samples_file, row)
        self.copy_samples(step, time.time(), rows)

    def close(self, exit_code: int, metrics: Mapping[str, float] | None = None) -> None:
        """Flush everything; trackers show a stage whose exit code is not 0 as failed. `metrics` are the final ones of a
        stage that is done."""
        if self.main:
            self.closing.set()
            self.heart.join()
            with contextlib.suppress(OSError, LockLost):  # nor may it hide why the stage ends
                self.directory.set_status(seconds=self.seconds, **self.progress)
        if self.wandb is not None:
            self.wandb.finish(exit_code, metrics)
        if self.tensorboard is not None:
            self.tensorboard.finish(metrics)


def describe_alarms(alarms: Mapping[str, int]) -> str | None:
    """Return alarms with the steps at which each began last, in one text; None without alarms."""
    return ", ".join(f"{name} at step {step}" for name, step in alarms.items()) or None


def append(file: Path, value: dict[str, Any]) -> None:
    """Append one line of JSON to a file."""
    with file.open("a") as stream:
        stream.write(json.dumps(value) + "\n")
