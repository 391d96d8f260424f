"""The lock of a directory: one process at a time writes a stage, and others wait for it.

The lock is a file made exclusively, whose modification time is its holder's heartbeat, so a shared file system is all that
is needed. A process that was suspended while another one took its lock over must not go on writing: every write is
preceded by `check`.
"""

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rlhf.experiment import stopping
from rlhf.experiment.files import parse_json

# A holder beats this often, and at least six times within the silence after which it is taken for dead.
BEAT_S = 10.0
# Between two looks of a waiter.
POLL_S = 1.0
# A waiter that has moved a lock by mistake puts it back within this time.
PUT_BACK_S = 0.5


class LockLost(Exception):
    """Another process has taken over what this one was writing; the message says which and why."""


@dataclass(frozen=True)
class Held:
    """A lock of this process."""

    file: Path
    token: str
    lost: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Seen:
    """A lock file as it was found: its text, its time by the file server's clock, and its holder (None: unreadable)."""

    text: str
    time: float
    holder: dict[str, Any] | None


_held: dict[str, Held] = {}  # by absolute directory


@contextlib.contextmanager
def hold(
    directory: Path, timeout_s: float, waiting: Callable[[str], None], token: str | None = None, doing: str = "trained"
) -> Iterator[None]:
    """Hold the directory's lock. Waits for a living holder; takes over from one that is dead, or silent for `timeout_s`
    where this machine cannot tell. `waiting` is told who holds it, and that the directory is being `doing`; `token` names
    the holder among all others (None: one is made). Raises Stopped if this process is asked to stop while it waits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    held = Held(directory / "lock", token or uuid.uuid4().hex)
    wait_for(held, timeout_s, waiting, doing)
    adopt_lock(directory, held)
    stop = threading.Event()
    heart = threading.Thread(target=touch, args=(held, stop, min(timeout_s / 6, BEAT_S)), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        _held.pop(os.path.abspath(directory), None)
        if is_ours(held):
            held.file.unlink(missing_ok=True)


def adopt_lock(directory: Path, held: Held) -> None:
    """Have this process write the directory under a lock: its own, or that of the process that started it."""
    _held[os.path.abspath(directory)] = held


def find_held(directory: Path) -> Held | None:
    """Return the lock under which this process writes the directory; None if it does so without."""
    return _held.get(os.path.abspath(directory))


def check(directory: Path) -> None:
    """Make sure that the directory is still this process's to write. Raises LockLost; called before every write."""
    held = find_held(directory)
    if held is None or is_ours(held):
        return
    held.lost.set()
    seen = read_lock(held.file)
    if seen is None or seen.holder is None:
        happened = "its lock has gone: it was removed, or another process took it over"
    else:
        happened = f"{describe(seen.holder)} has taken it over"
    raise LockLost(
        f"{happened}, as this process gave no sign of life for launcher.lock_timeout_s (suspended, or cut off from the "
        "files); it writes nothing more"
    )


def is_lost(directory: Path) -> bool:
    """Whether a heartbeat has found the lock in other hands; costs nothing."""
    held = find_held(directory)
    return held is not None and held.lost.is_set()


def is_ours(held: Held) -> bool:
    """Whether the lock file is there and names this holder."""
    seen = read_lock(held.file)
    if seen is None:
        time.sleep(PUT_BACK_S)
        seen = read_lock(held.file)
    return seen is not None and seen.holder is not None and seen.holder["token"] == held.token


def touch(held: Held, stop: threading.Event, period_s: float) -> None:
    """Renew the lock's heartbeat until told to stop, or until the lock is in other hands."""
    while not stop.wait(period_s):
        with contextlib.suppress(OSError):  # a file server that does not answer now; the lock is looked at again
            if not is_ours(held):
                held.lost.set()
                return
            os.utime(held.file)


def wait_for(held: Held, timeout_s: float, waiting: Callable[[str], None], doing: str = "trained") -> None:
    """Make the lock file, as soon as nobody alive has it."""
    told, unchanged = "", (math.nan, 0.0)
    while not acquire(held, timeout_s):
        seen = read_lock(held.file)
        if seen is None:
            continue
        if seen.time != unchanged[0]:
            unchanged = seen.time, time.monotonic()
        if is_stale(held.file, seen, timeout_s, time.monotonic() - unchanged[1]):
            remove_stale(held.file, seen)
            continue
        text = describe_wait(held.file.parent.name, seen, timeout_s, doing)
        if text != told:
            waiting(text)
            told = text
        if stopping.stop_requested.is_set():
            raise stopping.Stopped(f"asked to stop while it was being {doing} by another process")
        time.sleep(POLL_S)


def acquire(held: Held, timeout_s: float) -> bool:
    """Make the lock file; false if another process has it."""
    try:
        handle = os.open(held.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    holder = {"pid": os.getpid(), "started": process_start_time(os.getpid()), "token": held.token, "timeout_s": timeout_s}
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(machine_id() | holder, stream)
    except OSError:
        held.file.unlink(missing_ok=True)  # a full disk
        raise
    return True


def machine_id() -> dict[str, str]:
    """Return what tells the processes of this machine, since it was started and within this container, from all others:
    host names and process numbers alone coincide."""
    boot = namespace = ""
    with contextlib.suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def process_start_time(pid: int) -> str | None:
    """Return when a process of this machine began, in units that no change of the clock alters; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]  # proc_pid_stat(5): clock ticks since the machine was started
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def read_lock(file: Path) -> Seen | None:
    """Return the lock file as it is now, or None if there is none. Opening it makes a network file system ask its
    server."""
    try:
        with file.open("rb") as stream:
            text, changed = stream.read(4096).decode(errors="replace"), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return Seen(text, changed, read_holder(text))


def read_holder(text: str) -> dict[str, Any] | None:
    """Return who holds the lock; None if that cannot be read, as while it is being written."""
    try:
        holder = parse_json(text)
    except ValueError:
        return None
    kinds = {"host": str, "pid": int, "token": str}
    sound = isinstance(holder, dict) and all(isinstance(holder.get(key), kind) for key, kind in kinds.items())
    return holder if sound and holder["pid"] > 0 else None


def is_stale(file: Path, seen: Seen, timeout_s: float, unchanged_s: float) -> bool:
    """Whether a lock's holder is dead, as its own machine can tell, or else silent: by the file server's clock, or by what
    this process has seen itself, `unchanged_s`, where the server's clock was set back."""
    alive = None if seen.holder is None else is_alive(seen.holder)
    if alive is not None:
        return not alive
    patience = max(timeout_s, agreed_timeout(seen.holder))
    return unchanged_s > patience or server_time(file.parent) - seen.time > patience


def is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder lives; None if this machine cannot tell. A process number may be another process's by now."""
    if any(holder.get(key) != value for key, value in machine_id().items()):
        return None
    pid, hidden = holder["pid"], False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        hidden = True  # another user's, of which this one may not see more
    try:
        began = process_start_time(pid)
    except (PermissionError, psutil.AccessDenied):
        return None
    return None if hidden and began is None else began == holder.get("started")


def agreed_timeout(holder: dict[str, Any] | None) -> float:
    """Return the silence after which a holder expects to be taken for dead."""
    agreed = (holder or {}).get("timeout_s")
    return float(agreed) if isinstance(agreed, int | float) and math.isfinite(agreed) else 0.0


def server_time(directory: Path) -> float:
    """Return the time now by the clock that gives a directory's files their times: a file server's may differ from this
    machine's."""
    probe = directory / f".lock.{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def describe(holder: dict[str, Any]) -> str:
    """Return a holder's name."""
    return f"process {holder['pid']} on {holder['host']}"


def describe_wait(name: str, seen: Seen, timeout_s: float, doing: str) -> str:
    """Return what a user is told who waits."""
    if seen.holder is None:
        return f"{name} has a lock that cannot be read; waiting until nobody has renewed it for {timeout_s:g} s"
    text = f"{name} is being {doing} by {describe(seen.holder)}; waiting for it"
    return f"{text}, which is suspended (`kill -CONT {seen.holder['pid']}` wakes it)" if is_suspended(seen.holder) else text


def is_suspended(holder: dict[str, Any]) -> bool:
    """Whether a holder that this machine knows was stopped, as by Ctrl-Z."""
    try:
        return bool(is_alive(holder)) and psutil.Process(holder["pid"]).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def remove_stale(file: Path, seen: Seen) -> None:
    """Remove exactly the stale lock that was seen; one that was made or renewed meanwhile is put back."""
    aside = file.with_name(f".lock.{uuid.uuid4().hex[:8]}")
    try:
        os.rename(file, aside)
    except FileNotFoundError:
        return
    if read_lock(aside) != seen:
        try:
            os.link(aside, file)
        except OSError:  # somebody has made one meanwhile, or this file system has no hard links
            if not file.exists():
                os.rename(aside, file)
                return
    aside.unlink()
