"""What a stage is given besides its configuration and its inputs, and when it evaluates."""

from dataclasses import asdict, dataclass
from typing import Any

from rlhf.data.tokenized import Tokenized
from rlhf.experiment.spec import Spec
from rlhf.experiment.stage_directory import StageDirectory, parse_planned
from rlhf.planner.remaining import Planned
from rlhf.runtime.distributed import is_main
from rlhf.tracking.tracker import Tracker


@dataclass(frozen=True)
class Context:
    """The directory that the stage fills, where its metrics go, and what the stage was launched with."""

    directory: StageDirectory
    tracker: Tracker
    spec: Spec

    @property
    def planned(self) -> Planned | None:
        """What was planned of the stage when it was launched; None if nothing was."""
        return parse_planned(self.spec.planned)


def note_data(context: Context, train: Tokenized[Any], heldout: Tokenized[Any]) -> None:
    """Note what was counted of the records that the stage reads, for reports."""
    if is_main():
        context.directory.write_data({"train": asdict(train.counted), "heldout": asdict(heldout.counted)})


def should_evaluate(step: int, total: int, every: int | None) -> bool:
    """Whether to evaluate after `step` of `total` steps: every so many, and always at the end."""
    return step == total or (every is not None and step % every == 0)
