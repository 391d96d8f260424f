"""What to do with a step whose numbers are not finite: leave it out, keep its batch, and stop after too many in a row."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rlhf.experiment import lock
from rlhf.experiment.store import write_json


class Nonfinite:
    """Counts such steps in a row; `limit` of them end the run. Batches are kept in `directory`, one file per rank."""

    def __init__(self, limit: int, directory: Path, rank: int) -> None:
        self.limit, self.directory, self.rank = limit, directory, rank
        self.row = 0

    def note(self, step: int, problem: str | None, batch: dict[str, Tensor]) -> float:
        """Take note of a step and of what was not finite in it (None: nothing), which all ranks must agree on; returns 1.0
        or 0.0, to be logged. Raises FloatingPointError at the last one that is tolerated, and LockLost."""
        if problem is None:
            self.row = 0
            return 0.0
        self.row += 1
        lock.check(self.directory.parent)
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"step-{step}-rank-{self.rank}.safetensors"
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in batch.items()}, file)
        write_json(self.directory / f"step-{step}.json", {"step": step, "problem": problem})
        if self.row >= self.limit:
            times = f"for {self.row} steps in a row" if self.row > 1 else f"at step {step}"
            raise FloatingPointError(
                f"{problem} is not finite {times} (batches: {self.directory}); lower the learning rate, or use bf16 "
                "instead of fp16"
            )
        return 1.0
