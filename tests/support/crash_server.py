"""Stages in processes that can be killed at a chosen instant; each does what `python -m rlhf.launch.worker` does."""

import errno
import importlib
import math
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.forks import Ended, ForkServer, Kill


@dataclass(frozen=True)
class FaultPoint:
    """How a rank is hit: at the `nth` call of `at` (module:attribute) whose arguments show `match`, before or after it, or
    where what it returned is called; or `delay` seconds after its start. `rank` None: all of them, if there is a delay.
    `signal` 0: instead, the function says that the disk is full; and `when` "nan": it lives, but for that and all further
    calls the function's tensor is NaN."""

    at: str = ""
    when: str = "before"
    nth: int = 1
    match: str = ""
    delay: float = 0.0
    rank: int | None = 0
    signal: int = signal.SIGKILL


class CrashServer(ForkServer):
    """A server whose processes are the ranks of stages."""

    def run(self, spec: Path, world: int = 1, fault: FaultPoint | None = None) -> Ended:
        """Run a frozen stage to its end, or to its fault."""
        from rlhf.launch.worker import free_port

        kill = Kill(fault.delay, fault.signal, fault.rank) if fault is not None and fault.delay else None
        given, port = None if fault is None else asdict(fault), free_port()
        calls = [[str(spec), rank, world, port, given] for rank in range(world)]
        return self.fork("support.crash_server:be_rank", calls, kill)


def be_rank(spec: str, rank: int, world: int, port: int, fault: dict[str, Any] | None) -> int:
    """What a worker does, but for the fault."""
    from rlhf.launch import worker

    os.environ.update(worker.rank_environment(rank, rank, world, port))
    if fault is not None and fault["at"] and fault["rank"] == rank:
        arm(FaultPoint(**fault))
    return worker.main(Path(spec))


def arm(fault: FaultPoint) -> None:
    """Wrap a function so that the process dies there."""
    module, path = fault.at.split(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def strike() -> None:
        if not fault.signal:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), fault.signal)

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += not fault.match or fault.match in repr((args, kwargs))
        if fault.when == "nan":
            return original(*args, **kwargs) * (math.nan if calls >= fault.nth else 1.0)
        due = calls == fault.nth
        if due:
            calls += 1
        if due and fault.when == "before":
            strike()
        result = original(*args, **kwargs)
        if due and fault.when == "after":
            strike()
        return (lambda *_: strike()) if due and fault.when == "returned" else result

    setattr(owner, name, wrapped)
