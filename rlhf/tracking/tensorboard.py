"""TensorBoard: event files in the stage's directory. Imported only when used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorboardRun:
    """One stage's event files, begun anew: the tracker replays what was logged before."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for file in directory.glob("events.out.tfevents.*"):
            file.unlink()
        # A TensorBoard that has read the removed files drops what they said from step 0 on.
        self.writer: Any = SummaryWriter(str(directory), purge_step=0)

    def log(self, step: int, at: float, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step that was logged at the Unix time `at`."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step, walltime=at)

    def finish(self) -> None:
        """Flush and close the files."""
        self.writer.close()
