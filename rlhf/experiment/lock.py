"""Whose turn it is: a stage is written by one process at a time, and others wait for it."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.experiment import stopping
from rlhf.experiment.store import StageDirectory


@contextlib.contextmanager
def locked(directory: StageDirectory, timeout_s: float, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the stage's lock. Waits for a living holder; takes over from one that is dead or silent for `timeout_s`. Raises
    Stopped if this process is asked to stop while it waits.

    The lock is a file made exclusively, whose modification time is its holder's heartbeat, so a shared file system is
    all that is needed. `waiting` is told once who holds it.
    """
    file = directory.path / "lock"
    directory.path.mkdir(parents=True, exist_ok=True)
    told = False
    token = uuid.uuid4().hex
    while not acquire(file, token):
        holder = read_lock(file)
        if stale(file, holder, timeout_s):
            remove_stale(file, holder)
            continue
        if holder is not None and not told:
            waiting(
                f"{directory.path.name} is being trained by process {holder['pid']} on {holder['host']}; waiting for it"
            )
            told = True
        if stopping.asked.is_set():
            raise stopping.Stopped("asked to stop while another process trained it")
        time.sleep(1.0)
    stop = threading.Event()
    threading.Thread(target=beat, args=(file, stop, timeout_s / 6), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        holder = read_lock(file)
        if holder is not None and holder["token"] == token:
            file.unlink(missing_ok=True)


def acquire(file: Path, token: str) -> bool:
    """Make the lock file; false if another process has it."""
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as stream:
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "token": token}, stream)
    return True


def read_lock(file: Path) -> dict[str, Any] | None:
    """The holder, or None if the lock has gone or is just being written."""
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def stale(file: Path, holder: dict[str, Any] | None, timeout_s: float) -> bool:
    """Whether the holder is dead, as its own host can tell, or silent."""
    if holder is not None and holder["host"] == socket.gethostname() and not alive(holder["pid"]):
        return True
    try:
        return time.time() - file.stat().st_mtime > timeout_s
    except FileNotFoundError:
        return False


def alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_stale(file: Path, holder: dict[str, Any] | None) -> None:
    """Remove exactly the stale lock that was seen; one that someone made meanwhile is put back."""
    aside = file.with_name(f".lock.{uuid.uuid4().hex[:8]}")
    try:
        os.rename(file, aside)
    except FileNotFoundError:
        return
    seen = read_lock(aside)
    if seen is not None and (holder is None or seen["token"] != holder["token"]):
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)
    aside.unlink()


def beat(file: Path, stop: threading.Event, period_s: float) -> None:
    """Renew the lock's heartbeat until told to stop."""
    while not stop.wait(period_s):
        if file.exists():
            os.utime(file)
