"""One rank of a stage. `python -m rlhf.launch.worker <spec.json>`, or called in the launching process."""

import contextlib
import gc
import os
import pkgutil
import signal
import socket
import sys
import threading
import time
import traceback
from functools import cache
from pathlib import Path
from typing import NoReturn

from rlhf.catalog.stage import kind_of
from rlhf.config.disk import FULL, disk_problem
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.secrets import mask
from rlhf.experiment.lock import Held, LockLost, adopt_lock, process_start_time
from rlhf.experiment.spec import Spec, check_imported_code, read_spec, stage_directory
from rlhf.experiment.stopping import EXIT_CHECKPOINTED, EXIT_LOCK_LOST, Stopped, listening
from rlhf.experiment.store import write_json

# The variable that tells a worker which process started it.
PARENT = "RLHF_PARENT"
# The one that holds the token of the lock under which it writes.
LOCK = "RLHF_LOCK"
# And the one that holds the numbers of the processor cores to which it keeps, if not to all.
CORES = "RLHF_CORES"
# The variable that tells a process that it is the server of warm workers.
SERVER = "RLHF_SERVER"


def run_inline(spec: Spec) -> None:
    """Run a stage in this process, as its only rank."""
    check_imported_code(spec)
    os.environ.update(rank_environment(0, 0, 1, free_port()))
    run_rank(spec)


def rank_environment(rank: int, local_rank: int, world_size: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """Return the variables that torch.distributed and DeepSpeed read."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def error_file(spec: Spec, rank: int) -> Path:
    """Return the file in which a rank notes why it failed, and when. Ranks that fail because another one has gone note
    theirs later."""
    return Path(spec.directory) / "logs" / f"rank-{rank}.error"


def note_error(spec: Spec, error: Exception) -> None:
    """Note a rank's error in its file, and the traceback in its log. Raises LockLost."""
    bad_input = isinstance(error, ConfigError)
    said = first_line(error)
    if isinstance(error, OSError) and error.errno in FULL:
        said = disk_problem(error, Path(spec.directory))
    text = str(error) if bad_input else mask(f"{type(error).__name__}: {said}")
    print(f"error: {error}", file=sys.stderr) if bad_input else traceback.print_exc()
    with contextlib.suppress(OSError):  # a full disk, perhaps the very error
        stage_directory(spec).check_lock()
        write_json(error_file(spec, int(os.environ.get("RANK", "0"))), {"time": time.time(), "error": text})


def run_rank(spec: Spec) -> None:
    """Import the training code, which imports torch, and run the stage on this rank."""
    from rlhf.runtime.distributed import start

    start(spec.config)  # before anything imports deepspeed: it looks for its device then
    from rlhf.stages.run import run_stage

    keep_libraries()
    run_stage(spec)
    write_page(spec)


def write_page(spec: Spec) -> None:
    """Write, on the first rank, the page of what the stage has found, where its kind has one."""
    page = kind_of(spec.stage).page
    if page and os.environ.get("RANK", "0") == "0":
        pkgutil.resolve_name(page)(stage_directory(spec))


@cache
def keep_libraries() -> None:
    """Let the garbage collector, which each stage calls at its end, leave alone what is there before the first: millions
    of the libraries' objects, which take a third of a second to look at."""
    gc.freeze()


def leave_group() -> None:
    """Leave the process group as the process ends; not between stages of one process, since DeepSpeed keeps its groups."""
    from rlhf.runtime.distributed import leave

    leave()


def follow_parent(period_s: float = 1.0) -> None:
    """End this process when the launching process has gone, or the process that forked it: nobody would know of it."""
    parent = os.getppid()
    launcher = int(os.environ.get(PARENT, parent))
    began = process_start_time(launcher)
    while began is not None and process_start_time(launcher) == began and os.getppid() == parent:
        time.sleep(period_s)
    os._exit(1)


def keep_to_cores() -> None:
    """Keep this process, and the threads that it starts, to the cores that it was given."""
    if numbers := os.environ.get(CORES):
        os.sched_setaffinity(0, map(int, numbers.split(",")))


def main(file: Path) -> int:
    """Run a worker process for the stage of a spec's file: exit code 0 when done, EXIT_CHECKPOINTED when it was asked to
    stop and has saved, EXIT_LOCK_LOST when another process has its stage, 2 for bad input, 1 for everything else."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    keep_to_cores()
    threading.Thread(target=follow_parent, daemon=True).start()
    spec: Spec | None = None
    with listening(signal.SIGTERM, signal.SIGHUP):
        try:
            spec = read_spec(file)
            adopt_stage_lock(spec)
            run_rank(spec)
            leave_group()
        except Stopped:
            return EXIT_CHECKPOINTED
        except LockLost as lost:
            return report_lost_lock(lost)
        except Exception as error:
            if spec is None:
                print(f"error: {error}", file=sys.stderr)
                return 2 if isinstance(error, ConfigError) else 1
            try:
                note_error(spec, error)
            except LockLost as lost:
                return report_lost_lock(lost)
            return 2 if isinstance(error, ConfigError) else 1
    return 0


def adopt_stage_lock(spec: Spec) -> None:
    """Write the stage under the lock of the process that started this one; on other nodes than the first there is none."""
    if token := os.environ.get(LOCK):
        directory = stage_directory(spec).path
        adopt_lock(directory, Held(directory / "lock", token))


def report_lost_lock(lost: LockLost) -> int:
    """Say that another process has the stage; returns the exit code."""
    print(f"stopped: {lost}", file=sys.stderr)
    return EXIT_LOCK_LOST


def leave(code: int) -> NoReturn:
    """End this process. A failed rank must not wait in an exit handler for ranks that wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
