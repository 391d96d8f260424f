"""Running a stage on this rank. Each kind has a function `run(config, inputs, context) -> final metrics`, which leaves a
model in the stage's directory."""

import math
import pkgutil

from rlhf.catalog.stage import kind_of
from rlhf.data.files import expect_hashes
from rlhf.experiment.checkpoints import remove_all
from rlhf.experiment.fingerprint import check_data_files
from rlhf.experiment.spec import Spec, stage_directory
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.stopping import Stopped
from rlhf.runtime.device import free, on_gpu, reset_peak
from rlhf.runtime.distributed import barrier, is_main
from rlhf.stages.context import Context
from rlhf.stages.inputs import verify_inputs
from rlhf.tracking.tracker import Tracker


def free_memory() -> None:
    """Free the memory that a stage held, since the next one may run in this process."""
    free()
    if on_gpu():
        reset_peak()


def run_stage(spec: Spec) -> None:
    """Run a frozen stage on this rank; rank 0 declares it done."""
    directory = stage_directory(spec)
    if is_main():
        directory.set_status(state="running", reason=None)
    tracker = Tracker(spec, is_main())
    code, final = 1, None
    try:
        check_data_files(spec.config, spec.files)
        verify_inputs(spec)
        run = pkgutil.resolve_name(kind_of(spec.stage).run)
        with expect_hashes(spec.files):
            metrics: dict[str, float] = run(spec.config, spec.inputs, Context(directory, tracker, spec))
        require_finite(metrics)
        code, final = 0, metrics
    except Stopped as stopped:
        if is_main():
            directory.set_status(state=stopped.state, reason=str(stopped))
        raise
    finally:
        tracker.close(code, final)
        free_memory()
    if is_main():
        directory.finish(Result(spec.stage, spec.fingerprint, tracker.seconds, metrics))
        directory.set_status(state="done")
        remove_all(directory.path)
    barrier()


def require_finite(metrics: dict[str, float]) -> None:
    """Raise FloatingPointError for final metrics that are not finite: such a stage has failed, whatever it has saved."""
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        told = ", ".join(f"{name} is {value}" for name, value in sorted(broken.items()))
        raise FloatingPointError(f"the final evaluation is not finite ({told}): try a lower learning rate")
