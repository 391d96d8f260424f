"""What a stage is given besides its configuration and its inputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.config.schema import Config
from rlhf.data.tokens import SequenceBatch
from rlhf.experiment.spec import Spec
from rlhf.experiment.stage_directory import StageDirectory, parse_planned
from rlhf.planner.remaining import Planned
from rlhf.tracking.nonfinite import Nonfinite
from rlhf.tracking.tracker import Tracker


@dataclass(frozen=True)
class Context:
    """The directory that the stage fills, where its metrics go, and what the stage was launched with."""

    directory: StageDirectory
    tracker: Tracker
    spec: Spec

    @property
    def planned(self) -> Planned | None:
        """What was planned of the stage when it was launched."""
        return parse_planned(self.spec.planned)


def should_evaluate(step: int, total: int, every: int | None) -> bool:
    """Whether to evaluate after `step` of `total` steps: every so many, and always at the end."""
    return step == total or (every is not None and step % every == 0)


def initial_metrics(metrics: dict[str, float], name: str) -> dict[str, float]:
    """Return a figure and its standard error as those of the model that training started from: `<name>_initial`."""
    return {f"{name}_initial{end}": metrics[name + end] for end in ("", "_se") if name + end in metrics}


def keep_finite(
    nonfinite: Nonfinite, step: int, measured: dict[str, float], batch: Callable[[], SequenceBatch], config: Config
) -> dict[str, float]:
    """Return what a step measured, but for numbers that are not finite; counts a step that was left out because of one, and
    only then makes its `batch`, to be kept.

    A gradient that overflows in fp16 while the loss is finite is none: the loss scale is falling, as it should.
    """
    problem = None if math.isfinite(measured["train/loss"]) else "the loss"
    if problem is None and not math.isfinite(measured["train/grad_norm"]) and config.precision.dtype != "fp16":
        problem = "the gradient"
    kept = {name: value for name, value in measured.items() if math.isfinite(value)}
    if problem is None:
        return kept | {"train/nonfinite": nonfinite.note(step, None, {})}
    found = batch()
    tensors = {"ids": found.ids, "lengths": found.lengths, "starts": found.starts}
    return kept | {"train/nonfinite": nonfinite.note(step, problem, tensors)}
