"""What the server of warm workers does before it forks the first of them: it imports what training needs. Python's fork
server imports this module (rlhf/launch/warm.py); in another process it does nothing."""

import gc
import importlib
import os
import signal

from rlhf.experiment.fingerprint import code_hash
from rlhf.launch.worker import SERVER

IS_SERVER = os.environ.pop(SERVER, None) is not None
# Workers start from the server's memory where their environment and the code are as the server found them.
ENVIRONMENT = dict(os.environ)
CODE = code_hash()
# torch asks NVML, instead of CUDA, how many GPUs there are: a process that is forked after CUDA has begun cannot use it.
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
# What a stage would import itself, for a third of a second: pyarrow asks pandas whether values are its own.
IMPORTED_LATE = ("pandas",)


def leave_terminal() -> None:
    """Let signals of the terminal, and of SLURM to all processes of a job, pass by, and print nothing: a worker that cannot
    import what it needs says so in its own log."""
    os.setsid()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


def import_training() -> None:
    """Import the code of all stages. Raises ImportError for whatever goes wrong: the fork server passes over that, and all
    workers start cold."""
    os.environ.setdefault(NVML_CHECK, "1")
    try:
        from rlhf.catalog.stage import stage_kinds
        from rlhf.runtime.distributed import import_libraries

        import_libraries()
        for module in (*(kind.run.partition(":")[0] for kind in stage_kinds().values()), *IMPORTED_LATE):
            importlib.import_module(module)
    except Exception as error:
        raise ImportError("the training code cannot be imported") from error
    finally:
        if NVML_CHECK not in ENVIRONMENT:
            os.environ.pop(NVML_CHECK)
    gc.collect()
    gc.freeze()  # so that no worker's collections copy the pages of what is imported


if IS_SERVER:
    leave_terminal()
    import_training()
