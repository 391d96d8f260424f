"""Warm workers: one process imports what training needs, and forks a fresh process for each rank of each stage. Starting a
stage costs no imports then, and its memory goes back, whatever it does, when its processes end."""

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO

from rlhf.launch import worker
from rlhf.launch.workers import OWN_VARIABLES, Worker, spawn, worker_command

PRELOAD = "rlhf.launch.preload"
# Variables that libraries read when they are imported, and in which workers differ from the launching process.
READ_AT_IMPORT = ("OMP_NUM_THREADS", "DS_ACCELERATOR")
# Variables in which a worker's environment may differ from the server's. The last two come from readline, which passes them
# to other programs behind Python's back.
MAY_DIFFER = OWN_VARIABLES | {"COLUMNS", "LINES"}
# multiprocessing looks at all processes when it starts one, and reads the exit code of each but once: one thread at a time.
_multiprocessing = threading.Lock()


@dataclass(frozen=True)
class ForkedWorker:
    """A rank that the server has forked, with the part of subprocess.Popen that launchers use."""

    process: ForkServerProcess
    stdout: IO[str]

    @property
    def pid(self) -> int:
        """The number of its process."""
        return int(self.process.pid or 0)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; the negative number of the signal that ended it."""
        with _multiprocessing:
            return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def fork(spec: Path, environment: Mapping[str, str]) -> Worker:
    """Start a rank from the memory of the server, which is started if there is none. Where the server cannot be reached, as
    when it was killed, the rank starts cold."""
    context = get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=run_forked, args=(spec, dict(environment), writer))
    try:
        with _multiprocessing:
            start_server(environment)
            process.start()
    except (OSError, EOFError):
        reader.close()
        return spawn(spec, environment)
    finally:
        writer.close()
    with reader:
        return ForkedWorker(process, os.fdopen(os.dup(reader.fileno()), errors="replace"))


def start_server(environment: Mapping[str, str]) -> None:
    """Start the server, unless it runs. It gets its environment from this process, as all that multiprocessing starts."""
    given = {name: environment[name] for name in READ_AT_IMPORT} | {worker.SERVER: "1"}
    former = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in former.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def run_forked(spec: Path, environment: dict[str, str], output: Connection) -> None:
    """Be a rank, in the process that the server has forked for it; what it prints goes to `output`."""
    os.setsid()  # as a worker that is started cold
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    if not is_as_started(environment):
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execve(sys.executable, worker_command(spec), environment)
    for name in MAY_DIFFER - environment.keys():
        os.environ.pop(name, None)
    os.environ.update(environment)
    sys.argv = worker_command(spec)[2:]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `python -m` does so too
    worker.leave(worker.main(spec))


def is_as_started(environment: Mapping[str, str]) -> bool:
    """Whether a worker that is started cold would find what the server found, and can use what it has imported: code, the
    environment but for each rank's own variables, and CUDA untouched."""
    preload = sys.modules.get(PRELOAD)
    if preload is None:
        return False
    from rlhf.experiment.fingerprint import code_hash
    from rlhf.runtime.compat.torch import is_forked_from_cuda

    shared, found = (
        {name: value for name, value in variables.items() if name not in MAY_DIFFER}
        for variables in (environment, preload.ENVIRONMENT)
    )
    return shared == found and code_hash() == preload.CODE and not is_forked_from_cuda()
