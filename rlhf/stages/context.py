"""What a stage is given besides its configuration and its inputs, and when it evaluates."""

from dataclasses import dataclass

from rlhf.experiment.spec import Spec
from rlhf.experiment.stage_directory import StageDirectory, parse_planned
from rlhf.planner.remaining import Planned
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
