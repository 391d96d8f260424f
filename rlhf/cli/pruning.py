"""Giving up points of a search early: a search follows the evaluations of the stage that it judges, and has it save and
leave when Optuna says that the point is not worth going on with.

The stage may run in this process, in workers or as a job of SLURM; it shares nothing with the search but its directory. So
evaluations are read from metrics.jsonl, and the stage finds a file there that tells it to leave (`Saver.boundary`).
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

from rlhf.catalog.stage import metrics_of
from rlhf.config.errors import ConfigError
from rlhf.config.keys import KEYS, get_key
from rlhf.config.schema import Config
from rlhf.experiment.files import Unreadable, as_float, as_int
from rlhf.experiment.graph import Node
from rlhf.experiment.lock import find_held
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.store import write_atomic
from rlhf.experiment.sweep import Point

# Between two looks at the metrics of a running stage.
PERIOD_S = 1.0


def build_pruner(config: Config) -> Any:
    """Return Optuna's pruner of that name. Hyperband learns how long a stage is from the first trial that ends."""
    import optuna

    if config.sweep.pruner == "median":
        return optuna.pruners.MedianPruner()
    if config.sweep.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def check_pruner(config: Config) -> None:
    """Refuse a pruner where the stage that is judged is not evaluated before its end. Raises ConfigError."""
    stage = next((stage for stage in reversed(config.stages) if config.sweep.objective in metrics_of(stage)), None)
    key = f"{stage}.eval_every"
    if config.sweep.pruner == "none" or stage is None:
        return
    if key not in KEYS or get_key(config, key) is None:
        problem = f"{stage} is evaluated at its end alone, when there is nothing left to prune"
        fix = f"set {key}=10, or sweep.pruner=none" if key in KEYS else "set sweep.pruner=none"
        raise ConfigError("sweep.pruner", config.sweep.pruner, problem, fix)


def find_judged(point: Point, objective: str) -> Node | None:
    """Return the last stage of a point that has the metric that is sought; None if there is none."""
    return next((node for node in reversed(point.stages) if objective in metrics_of(node.stage)), None)


def is_pruned(point: Point) -> bool:
    """Whether a search has given up one of the point's stages."""
    return any(node.directory.read_state().name == "pruned" for node in point.stages)


class Evaluations:
    """Reports the evaluations of a stage to a trial, each once, and remembers whether the trial is to be pruned."""

    def __init__(self, trial: Any, directory: StageDirectory, objective: str) -> None:
        self.trial, self.directory, self.objective = trial, directory, objective
        self.reported: set[int] = set()
        self.is_over = False  # the trial is not worth going on with

    def report(self) -> None:
        """Report the evaluations that are new in metrics.jsonl, in their order. A line that is being written is read
        later. At the last step there is nothing left to prune."""
        total = self.directory.counted("total") or math.inf
        with contextlib.suppress(Unreadable):
            for line in self.directory.metrics():
                step, value = as_int((line or {}).get("step")), as_float((line or {}).get(self.objective))
                if step is None or value is None or not math.isfinite(value) or step in self.reported:
                    continue
                self.trial.report(value, step)
                self.reported.add(step)
                self.is_over = self.is_over or (step < total and self.trial.should_prune())

    def follow(self, ended: threading.Event) -> None:
        """Report evaluations until the stage has `ended`, and have it leave as soon as the trial is to be pruned."""
        while not ended.wait(PERIOD_S):
            self.report()
            if self.is_over and is_launched_here(self.directory) and not self.directory.prune_file.is_file():
                with contextlib.suppress(OSError):  # a full disk, say: it is tried again
                    write_atomic(self.directory.prune_file, "", durable=False)


def is_launched_here(directory: StageDirectory) -> bool:
    """Whether this process runs the stage, or a job of SLURM does that was launched by a search that prunes: what another
    process runs is not this search's to end."""
    return find_held(directory.path) is not None or directory.status().get("job") is not None


@contextlib.contextmanager
def pruning(trial: Any, point: Point, config: Config) -> Iterator[None]:
    """Follow the evaluations of a point's judged stage while it runs, and report them all to the trial."""
    judged = find_judged(point, str(config.sweep.objective))
    if config.sweep.pruner == "none" or judged is None:
        yield
        return
    evaluations, ended = Evaluations(trial, judged.directory, str(config.sweep.objective)), threading.Event()
    follower = threading.Thread(target=evaluations.follow, args=(ended,), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        judged.directory.prune_file.unlink(missing_ok=True)
    evaluations.report()
