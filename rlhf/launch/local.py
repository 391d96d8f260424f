"""One worker process per device of this machine: started, watched and ended together."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

from rich.console import Console
from rich.text import Text

from rlhf.config.derive import ranks
from rlhf.config.schema import Config
from rlhf.experiment.spec import Spec
from rlhf.launch import StageFailed
from rlhf.launch.worker import free_port, rank_environment

GRACE_S = 5.0


def run_workers(spec: Spec, config: Config, console: Console) -> None:
    """Run a stage on all devices. Raises StageFailed naming the rank that failed first, after ending the others."""
    workers = start_workers(spec, config, console)
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        failed = watch(workers)
    finally:
        end(workers)
        signal.signal(signal.SIGTERM, previous)
    if failed is not None:
        raise StageFailed(
            f"{spec.stage}: rank {failed} failed: {last_error(log_file(spec, failed))} (log: {log_file(spec, failed)})"
        )


def interrupt(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that the workers are ended too."""
    raise KeyboardInterrupt


def start_workers(spec: Spec, config: Config, console: Console) -> list[subprocess.Popen[str]]:
    """Start every rank, with its output in a log file and, for rank 0, on the console as well."""
    world, port = ranks(config), free_port()
    threads = config.launcher.threads or max(1, (os.cpu_count() or 1) // world)
    workers = []
    for rank in range(world):
        environment = {**os.environ, **rank_environment(rank, rank, world, port), "OMP_NUM_THREADS": str(threads)}
        worker = subprocess.Popen(
            [sys.executable, "-m", "rlhf.launch.worker", str(spec.file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the workers in order
        )
        workers.append(worker)
        assert worker.stdout is not None
        log = log_file(spec, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=relay, args=(worker.stdout, log, console if rank == 0 else None), daemon=True).start()
    return workers


def log_file(spec: Spec, rank: int) -> Path:
    """Where a rank's output is kept."""
    return Path(spec.directory) / "logs" / f"rank-{rank}.log"


def relay(stream: IO[str], log: Path, console: Console | None) -> None:
    """Copy a worker's output to its log, and rank 0's to the console."""
    with log.open("w") as file:
        for line in stream:
            file.write(line)
            file.flush()
            if console is not None:
                console.print(Text(f"[0] {line.rstrip()}"))


def watch(workers: list[subprocess.Popen[str]]) -> int | None:
    """Wait until all are done (None) or one has failed (its rank)."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return failed[0]
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def end(workers: list[subprocess.Popen[str]]) -> None:
    """Ask the workers that are left to stop, then make them."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        left = [worker for worker in workers if worker.poll() is None]
        for worker in left:
            os.killpg(worker.pid, number)
        deadline = time.time() + patience
        while time.time() < deadline and any(worker.poll() is None for worker in left):
            time.sleep(0.05)


def last_error(log: Path) -> str:
    """The line of a log that says what went wrong: the last one that names an error, else the last one."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    named = [line for line in lines if re.match(r"(error: |[\w.]*(Error|Exception|Interrupt)\b)", line)]
    return (named or lines or ["no output"])[-1]
