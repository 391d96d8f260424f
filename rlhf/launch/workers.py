"""One worker process per device of this machine: started, watched and ended together."""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.text import Text

from rlhf.config.derive import ranks
from rlhf.config.terminal import make_printable, strip_colours
from rlhf.experiment import stopping
from rlhf.experiment.files import Unreadable, as_float, as_text, read_object
from rlhf.experiment.lock import find_held, is_lost
from rlhf.experiment.spec import Spec, stage_directory
from rlhf.experiment.stopping import EXIT_CHECKPOINTED, EXIT_LOCK_LOST, Pruned, Stopped
from rlhf.experiment.store import write_json
from rlhf.launch.worker import CORES, LOCK, PARENT, error_file, free_port, rank_environment

# Variables that each rank has of its own; all others are those of the launching process, or the same for all stages.
OWN_VARIABLES = frozenset({*rank_environment(0, 0, 1, 0), PARENT, LOCK, CORES, "CUDA_VISIBLE_DEVICES"})
# Between asking a worker whose stage has failed elsewhere to end, and ending it.
GRACE_S = 2.0


class StageFailed(Exception):
    """A stage ended without a result; the message says which rank, why, and where its log is."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Devices:
    """What a stage may use here: names of GPUs (None: all that are visible), threads per rank on the CPU, and numbers of
    the cores that its ranks share (None: all that this process may use)."""

    gpus: list[str] | None
    threads: int
    cores: list[int] | None = None


class Worker(Protocol):
    """A rank's process, as subprocess.Popen has it."""

    @property
    def pid(self) -> int:
        """The number of the process, which is also that of its session."""

    @property
    def stdout(self) -> IO[str] | None:
        """What it prints."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Send it a signal, unless it has ended."""


# Starts a rank by the file of its spec and its environment.
Start = Callable[[Path, Mapping[str, str]], Worker]


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of all nodes meet, which node this is, and what the ranks read (None: the stage's own spec)."""

    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    spec: Path | None = None


def run_workers(
    spec: Spec,
    console: Console,
    devices: Devices,
    start: Start,
    meeting: Rendezvous | None = None,
    over: Callable[[], bool] = bool,
) -> None:
    """Run this node's ranks of a stage, each started by `start`, and wait for them.

    Returns when they are done, or when `over` says that the stage is. When this process is asked to stop, they are: they
    save and leave. Raises StageFailed naming the rank that failed first, after ending the others; or Stopped; or LockLost.
    """
    directory = stage_directory(spec)
    meeting = meeting or Rendezvous(port=free_port())
    relays: list[threading.Thread] = []
    workers = start_workers(spec, console, devices, start, meeting, relays)
    try:
        watched = watch(workers, spec.config.launcher.grace_s, lambda: over() or is_lost(directory.path))
        codes = {meeting.node * len(workers) + number: code for number, code in enumerate(watched)}
        note_killed(spec, codes)
    finally:
        terminate(workers)
        for thread in relays:
            thread.join(1.0)  # so that the logs are whole
    if EXIT_LOCK_LOST in watched or is_lost(directory.path):
        directory.check_lock()
    raise_on_failure(spec, codes)


def note_killed(spec: Spec, codes: dict[int, int | None]) -> None:
    """Note of each of this node's ranks that a signal ended, unasked, that it did: the rank could not, and other nodes see
    no more than that it has gone."""
    if stopping.stop_requested.is_set() or is_lost(stage_directory(spec).path):
        return
    for rank, code in codes.items():
        if code is not None and code < 0 and not error_file(spec, rank).is_file():
            with suppress(OSError):  # a full disk: this node knows by the code
                write_json(error_file(spec, rank), {"time": time.time(), "error": describe_signal(-code), "killed": True})


def raise_on_failure(spec: Spec, codes: dict[int, int | None]) -> None:
    """Raise StageFailed or Stopped by the exit codes of this node's ranks and the errors that all ranks have noted."""
    bad = [rank for rank, code in codes.items() if code not in (None, 0, EXIT_CHECKPOINTED)]
    ended = stopping.stop_requested.is_set() and all(codes[rank] in (-signal.SIGTERM, -signal.SIGKILL) for rank in bad)
    noted = [rank for rank in range(ranks(spec.config)) if error_file(spec, rank).is_file()]
    if noted or (bad and not ended):
        rank = find_first_failed(spec, bad, noted)
        log = log_file(spec, rank)
        raise StageFailed(f"{spec.stage}: rank {rank} failed: {find_reason(spec, rank, codes.get(rank))} (log: {log})", log)
    if bad:
        raise Stopped("asked to stop before it could save")
    if EXIT_CHECKPOINTED in codes.values():
        status = stage_directory(spec).status()
        raise (Pruned if status.get("state") == Pruned.state else Stopped)(str(status.get("reason")))


def start_workers(
    spec: Spec, console: Console, devices: Devices, start: Start, meeting: Rendezvous, relays: list[threading.Thread]
) -> list[Worker]:
    """Start this node's ranks, each with its output in a log file and, for rank 0, on the console as well; `relays` gets
    the threads that copy it."""
    hardware = spec.config.hardware
    count, world = hardware.gpus_per_node, hardware.gpus_per_node * hardware.nodes
    held = find_held(Path(spec.directory))
    workers: list[Worker] = []
    for local_rank in range(count):
        rank = meeting.node * count + local_rank
        environment = {
            **os.environ,
            **rank_environment(rank, local_rank, world, meeting.port, meeting.address),
            "OMP_NUM_THREADS": str(devices.threads),
            "DS_ACCELERATOR": hardware.device,
            PARENT: str(os.getpid()),
            LOCK: held.token if held else "",
        }
        if devices.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices.gpus)
        if devices.cores is not None:
            environment[CORES] = ",".join(map(str, devices.cores))
        log = log_file(spec, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        error_file(spec, rank).unlink(missing_ok=True)
        workers.append(start(meeting.spec or spec.file, environment))
        prefix = f"[{Path(spec.directory).name} {rank}]" if spec.config.launcher.parallel > 1 else f"[{rank}]"
        shown = console if rank == 0 else None
        relays.append(threading.Thread(target=relay, args=(workers[-1].stdout, log, prefix, shown), daemon=True))
        relays[-1].start()
    return workers


def spawn(spec: Path, environment: Mapping[str, str]) -> Worker:
    """Start one rank cold, as a program. SLURM's signal goes to every process of a job: it is held back until the worker
    can ignore it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        return subprocess.Popen(
            worker_command(spec),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which stops the workers in order
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def worker_command(spec: Path) -> list[str]:
    """Return the command of a rank."""
    return [sys.executable, "-m", "rlhf.launch.worker", str(spec)]


def log_file(spec: Spec, rank: int) -> Path:
    """Return the log of a rank's output."""
    return Path(spec.directory) / "logs" / f"rank-{rank}.log"


def relay(stream: IO[str], log: Path, prefix: str, console: Console | None) -> None:
    """Copy a worker's output to its log, and rank 0's to the console."""
    log.write_text("")
    with log.open("a") as file:  # another process that takes the stage over empties it: nothing of this one is left amidst
        for line in stream:
            file.write(line)
            file.flush()
            if console is not None:
                console.print(Text(f"{prefix} {make_printable(strip_colours(line.rstrip()))}"), soft_wrap=True)


def watch(workers: Sequence[Worker], grace_s: float, over: Callable[[], bool] = bool) -> list[int | None]:
    """Return the workers' exit codes, once all have ended, or one has failed, or the stage is over. Tells them when this
    process is asked to stop, and waits `grace_s` for them to save."""
    deadline: float | None = None
    while True:
        codes = [worker.poll() for worker in workers]
        if (
            all(code is not None for code in codes)
            or any(code not in (None, 0, EXIT_CHECKPOINTED) for code in codes)
            or over()
        ):
            return codes
        if stopping.abort_requested.is_set() or (deadline is not None and time.monotonic() > deadline):
            terminate(workers)
        elif deadline is None and stopping.stop_requested.is_set():
            deadline = time.monotonic() + grace_s
            for worker in workers:
                if worker.poll() is None:
                    worker.send_signal(signal.SIGTERM)
        time.sleep(0.05)


def terminate(workers: Sequence[Worker]) -> None:
    """End the workers that are left: ask them, then make them."""
    for order, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        left = [worker for worker in workers if worker.poll() is None]
        for worker in left:
            with suppress(ProcessLookupError):  # it has ended, or has not begun its session yet
                os.killpg(worker.pid, order)
            worker.send_signal(order)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(worker.poll() is None for worker in left):
            time.sleep(0.02)


def find_first_failed(spec: Spec, bad: list[int], noted: list[int]) -> int:
    """Return the rank that is the root cause: the one that was killed first, else one that failed and noted nothing, else
    the one that noted its error first. Other ranks fail because it has gone."""
    notes = {rank: read_note(spec, rank) for rank in noted}
    killed, silent = [rank for rank in noted if notes[rank].get("killed")], [rank for rank in bad if rank not in noted]
    if silent and not killed:
        return silent[0]
    return min(killed or noted, key=lambda rank: as_float(notes[rank].get("time")) or math.inf)


def read_note(spec: Spec, rank: int) -> dict[str, Any]:
    """Read the error that a rank noted; empty where it could not note one, or was ended while it did."""
    try:
        return read_object(error_file(spec, rank)) or {}
    except Unreadable:
        return {}


def find_reason(spec: Spec, rank: int, code: int | None) -> str:
    """Return why a rank failed: the error that it noted, the signal that ended it, or the error in its log."""
    if note := as_text(read_note(spec, rank).get("error")):
        return note
    return describe_signal(-code) if code is not None and code < 0 else last_error(log_file(spec, rank))


def describe_signal(number: int) -> str:
    """Say which signal ended a rank."""
    return f"it was ended by {signal.Signals(number).name}" + (" (out of memory?)" if number == signal.SIGKILL else "")


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, else the last line."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    named = [line for line in lines if re.match(r"(error: |[\w.]*(Error|Exception|Interrupt)\b)", line)]
    return (named or lines or ["no output"])[-1]
