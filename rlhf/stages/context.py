"""What a stage is given besides its configuration and its inputs."""

from dataclasses import dataclass

from rlhf.experiment.store import StageDirectory
from rlhf.track.tracker import Tracker


@dataclass(frozen=True)
class Context:
    """The directory that the stage fills, and where its metrics go."""

    directory: StageDirectory
    tracker: Tracker


def due(step: int, total: int, every: int | None) -> bool:
    """Whether to evaluate after `step` of `total` steps: every so many, and always at the end."""
    return step == total or (every is not None and step % every == 0)
