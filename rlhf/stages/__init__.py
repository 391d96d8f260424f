"""The three stages. Each is `run(config, inputs, context) -> final metrics` and leaves a model in its directory. A fourth
measures how fast they are."""

import math
from collections.abc import Callable

import torch

from rlhf.config.schema import Config
from rlhf.experiment.checkpoints import remove_all
from rlhf.experiment.fingerprint import check_data_files
from rlhf.experiment.spec import Spec, stage_directory
from rlhf.experiment.stopping import Stopped
from rlhf.experiment.store import Result
from rlhf.runtime.device import free, on_gpu
from rlhf.runtime.distributed import barrier, is_main
from rlhf.stages.bench.run import run as run_bench
from rlhf.stages.context import Context
from rlhf.stages.inputs import verify_inputs
from rlhf.stages.ppo.train import run as run_ppo
from rlhf.stages.reward.train import run as run_reward
from rlhf.stages.sft.train import run as run_sft
from rlhf.tracking.tracker import Tracker

RUN: dict[str, Callable[[Config, dict[str, str], Context], dict[str, float]]] = {
    "sft": run_sft,
    "reward": run_reward,
    "ppo": run_ppo,
    "bench": run_bench,
}


def free_memory() -> None:
    """Give back what a stage held, since the next one may run in this process."""
    free()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()


def run_stage(spec: Spec) -> None:
    """Run a frozen stage on this rank; rank 0 declares it done."""
    directory = stage_directory(spec)
    if is_main():
        directory.set_status(state="running", reason=None)
    tracker = Tracker(spec, is_main())
    code = 1
    try:
        check_data_files(spec.config, spec.files)
        verify_inputs(spec)
        metrics = RUN[spec.stage](spec.config, spec.inputs, Context(directory, tracker, spec))
        require_finite(metrics)
        code = 0
    except Stopped as stopped:
        if is_main():
            directory.set_status(state="stopped", reason=str(stopped))
        raise
    finally:
        tracker.close(code)
        free_memory()
    if is_main():
        directory.finish(Result(spec.stage, spec.fingerprint, tracker.seconds, metrics))
        directory.set_status(state="done")
        remove_all(directory.path)
    barrier()


def require_finite(metrics: dict[str, float]) -> None:
    """Raise FloatingPointError for final figures that are not finite: such a stage has failed, whatever it has saved."""
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        told = ", ".join(f"{name} is {value}" for name, value in sorted(broken.items()))
        raise FloatingPointError(f"the final evaluation is not finite ({told}): try a lower learning rate")
