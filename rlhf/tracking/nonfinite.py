"""What to do with a step whose numbers are not finite: leave it out, keep its batch, and stop after too many in a row."""

import math
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rlhf.config.schema import Config
from rlhf.experiment import lock
from rlhf.experiment.store import write_json


class Nonfinite:
    """Counts consecutive steps that were left out; `limit` of them end the run. Their batches are kept in `directory`, one
    file per rank."""

    def __init__(self, limit: int, directory: Path, rank: int) -> None:
        self.limit, self.directory, self.rank = limit, directory, rank
        self.consecutive = 0

    def note(self, step: int, problem: str | None, batch: dict[str, Tensor]) -> float:
        """Take note of a step and of what was not finite in it (None: nothing), which all ranks must agree on; returns 1.0
        or 0.0, to be logged. Raises FloatingPointError at the last one that is tolerated, and LockLost."""
        if problem is None:
            self.consecutive = 0
            return 0.0
        self.consecutive += 1
        lock.check(self.directory.parent)
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"step-{step}-rank-{self.rank}.safetensors"
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in batch.items()}, file)
        write_json(self.directory / f"step-{step}.json", {"step": step, "problem": problem})
        if self.consecutive >= self.limit:
            times = f"for {self.consecutive} steps in a row" if self.consecutive > 1 else f"at step {step}"
            raise FloatingPointError(
                f"{problem} is not finite {times} (batches: {self.directory}); lower the learning rate, or use bf16 "
                "instead of fp16"
            )
        return 1.0


def keep_finite(
    nonfinite: Nonfinite, step: int, measured: dict[str, float], batch: Callable[[], dict[str, Tensor]], config: Config
) -> dict[str, float]:
    """Return the metrics of a step that are finite, and `train/nonfinite`: 1 for a step that was left out because its loss
    or its gradient is not. Only then is its `batch` made, to be kept.

    A gradient that overflows in fp16 while the loss is finite does not count: the loss scale is falling, as it should.
    """
    problem = None if math.isfinite(measured["train/loss"]) else "the loss"
    if problem is None and not math.isfinite(measured["train/grad_norm"]) and config.precision.dtype != "fp16":
        problem = "the gradient"
    finite = {name: value for name, value in measured.items() if math.isfinite(value)}
    return finite | {"train/nonfinite": nonfinite.note(step, problem, {} if problem is None else batch())}
