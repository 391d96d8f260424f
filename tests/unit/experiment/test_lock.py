"""The lock of a directory, with other processes that hold it, die, sleep and wake."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf.experiment import lock
from rlhf.experiment.lock import LockLost, hold
from rlhf.experiment.stage_directory import Result, StageDirectory


@pytest.fixture
def stage(tmp_path):
    return StageDirectory(tmp_path / "sft-0123456789ab")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A waiting process looks at the lock every few milliseconds instead of every second."""
    monkeypatch.setattr(lock, "POLL_S", 0.005)
    monkeypatch.setattr(lock, "PUT_BACK_S", 0.01)


def write_lock(stage, age_s=0.0, text=None, **holder):
    """A lock as a process of another machine would have left it, but for the fields given."""
    stage.path.mkdir(parents=True, exist_ok=True)
    file = stage.path / "lock"
    known = {"host": "elsewhere", "boot": "its", "namespace": "its", "pid": 1, "started": "1", "token": "theirs"}
    file.write_bytes(json.dumps(known | holder).encode() if text is None else text)
    os.utime(file, (time.time() - age_s, time.time() - age_s))
    return file


def ours(pid):
    """The fields of a lock that a process of this machine holds."""
    return {**lock.machine_id(), "pid": pid, "started": lock.process_start_time(pid)}


def taken_within(stage, seconds, timeout_s):
    """Whether the lock can be had in so many seconds; whoever still waits then is let go."""
    got, told = threading.Event(), []

    def take():
        with hold(stage.path, timeout_s, told.append):
            got.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    taken = got.wait(seconds)
    if not taken:
        (stage.path / "lock").unlink(missing_ok=True)
    thread.join(5)
    return taken, told


HOLD = """
import os, socket, sys
from pathlib import Path
host = sys.argv[2]
if host != "here":
    socket.gethostname = lambda: host
from rlhf.experiment.lock import LockLost, hold
from rlhf.experiment.stage_directory import Result, StageDirectory
stage = StageDirectory(Path(sys.argv[1]))
try:
    with hold(stage.path, float(sys.argv[3]), lambda text: print("waiting", flush=True)):
        print("holding", flush=True)
        for line in sys.stdin:
            if line == "die\\n":
                os._exit(1)
            if line == "release\\n":
                break
            stage.finish(Result("sft", "f", 1.0, {})) if line == "finish\\n" else stage.set_status(said=line.strip())
            print("wrote", flush=True)
except LockLost as lost:
    print(f"lost: {lost}", flush=True)
"""


@contextlib.contextmanager
def holder(stage, host="here", timeout_s=60.0):
    """Another process that holds the lock, on this machine or on one of that name."""
    command = [sys.executable, "-c", HOLD, str(stage.path), host, str(timeout_s)]
    pipe, root = subprocess.PIPE, Path(lock.__file__).parents[2]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        try:
            assert next(line for line in process.stdout if line != "waiting\n") == "holding\n"
            yield process
        finally:
            process.kill()


def tell(process, line):
    """Have a holder do something; what it says to it."""
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline()


def suspend(process):
    """As Ctrl-Z does."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_free_lock_is_taken_and_given_back(stage):
    with hold(stage.path, 60, pytest.fail):
        held = json.loads((stage.path / "lock").read_text())
        assert (held["host"], held["pid"]) == (socket.gethostname(), os.getpid())
    assert list(stage.path.iterdir()) == []


def test_a_lock_is_given_back_after_an_error(stage):
    with pytest.raises(RuntimeError), hold(stage.path, 60, pytest.fail):
        raise RuntimeError
    assert not (stage.path / "lock").exists()


def test_a_lock_that_could_not_be_filled_is_not_left(stage, monkeypatch):
    def full(value, stream):
        raise OSError("No space left on device")

    monkeypatch.setattr(lock.json, "dump", full)
    with pytest.raises(OSError, match="No space"), hold(stage.path, 60, pytest.fail):
        pytest.fail("it was not taken")
    assert list(stage.path.iterdir()) == []


def test_a_second_process_waits_until_the_first_is_done(stage):
    with holder(stage) as first:
        told = []

        def release(text):
            told.append(text)
            assert tell(first, "still here") == "wrote\n"
            tell(first, "release")

        with hold(stage.path, 60, release):
            assert stage.status()["said"] == "still here"
            assert json.loads((stage.path / "lock").read_text())["pid"] == os.getpid()
    (text,) = told  # said once
    assert str(first.pid) in text and socket.gethostname() in text and stage.path.name in text


# --- who is dead -----------------------------------------------------------------------------------------------------


def test_a_dead_holders_lock_is_taken_over_at_once(stage):
    with holder(stage) as dead:
        tell(dead, "die")
        assert dead.wait(10) == 1
    assert (stage.path / "lock").exists()
    assert taken_within(stage, 5, timeout_s=3600) == (True, [])


def test_a_dead_holder_that_nobody_has_waited_for_is_dead(stage):
    """A zombie, as in a container whose first process waits for no child: its process number is still taken."""
    with holder(stage) as dead:
        tell(dead, "die")
        assert taken_within(stage, 5, timeout_s=3600)[0]
        assert dead.returncode is None


@pytest.mark.parametrize("suspended", [False, True])
def test_a_living_holder_of_this_machine_is_never_taken_over(stage, suspended):
    """However old its lock looks: by another clock, after Ctrl-Z, or on a laptop that slept."""
    with holder(stage) as living:
        if suspended:
            suspend(living)
        os.utime(stage.path / "lock", (time.time() - 3600, time.time() - 3600))
        taken, told = taken_within(stage, 0.5, timeout_s=0.1)
        assert not taken and len(told) == 1
        assert (f"`kill -CONT {living.pid}`" in told[0]) == suspended


def test_a_process_number_that_another_process_has_by_now_is_not_the_holder(stage):
    write_lock(stage, **ours(os.getppid()) | {"started": "1"})
    assert taken_within(stage, 5, timeout_s=3600) == (True, [])


@pytest.mark.parametrize("other", [{"boot": "before"}, {"namespace": "pid:[1]"}, {"host": "elsewhere"}])
def test_process_numbers_of_other_machines_and_containers_say_nothing(stage, other):
    """Of a container with the same name, say: its holder may have a number that is free here. Only its silence counts."""
    write_lock(stage, **ours(os.getppid()) | {"pid": 2**22 + 1} | other)
    assert not taken_within(stage, 0.3, timeout_s=60)[0]
    write_lock(stage, 61, **ours(os.getppid()) | other)
    assert taken_within(stage, 5, timeout_s=60) == (True, [])


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_the_waiters_clock_does_not_matter(stage, monkeypatch, ahead_s):
    """A remote holder is taken over when it has been silent by the file server's clock, and not before."""
    clock = time.time
    write_lock(stage, age_s=61)
    monkeypatch.setattr(time, "time", lambda: clock() + ahead_s)
    assert taken_within(stage, 5, timeout_s=60) == (True, [])
    with holder(stage, "elsewhere"):
        taken, told = taken_within(stage, 0.5, timeout_s=60)
        assert not taken and len(told) == 1 and "on elsewhere" in told[0]


def test_a_remote_holder_with_a_heartbeat_is_waited_for(stage):
    """Its lock outlives the timeout as long as it is renewed, and is taken over when that stops."""
    got = threading.Event()

    def take():
        with hold(stage.path, 0.4, lambda text: None):
            got.set()

    with holder(stage, "elsewhere", timeout_s=0.4) as living:
        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        assert not got.wait(0.9)
        suspend(living)
        assert got.wait(5)
        taker.join(5)


def test_a_holder_is_given_the_time_that_it_asked_for(stage):
    write_lock(stage, age_s=61, timeout_s=600.0)
    assert not taken_within(stage, 0.3, timeout_s=60)[0]
    write_lock(stage, age_s=601, timeout_s=600.0)
    assert taken_within(stage, 5, timeout_s=60) == (True, [])


def test_a_holder_renews_its_lock(stage):
    with hold(stage.path, 0.12, pytest.fail):
        first = (stage.path / "lock").stat().st_mtime_ns
        deadline = time.time() + 5
        while (stage.path / "lock").stat().st_mtime_ns == first and time.time() < deadline:
            time.sleep(0.01)
        assert (stage.path / "lock").stat().st_mtime_ns > first


GARBAGE = {
    "empty": b"",  # its maker was killed before it wrote its name
    "cut": b'{"host": "elsewh',
    "a list": b"[1]",
    "null": b"null",
    "a number": b"1",
    "wrong types": b'{"host": 1, "pid": "x", "token": null}',
    "no token": b'{"host": "elsewhere", "pid": 1}',
    "nobody": b'{"host": "elsewhere", "pid": 0, "token": "x"}',
    "nested": b"[" * 100_000,
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_a_lock_that_cannot_be_read_is_taken_over_once_it_is_old(stage, text):
    write_lock(stage, age_s=61, text=text)
    assert taken_within(stage, 5, timeout_s=60) == (True, [])
    write_lock(stage, text=text)
    taken, told = taken_within(stage, 0.05, timeout_s=60)
    assert not taken and "cannot be read" in told[0]


@pytest.mark.parametrize("text", [b"", None], ids=["empty", "a dead holder's"])
def test_a_lock_from_the_future_does_not_block_for_ever(stage, text):
    write_lock(stage, age_s=-3600, text=text)
    taken, told = taken_within(stage, 5, timeout_s=0.3)
    assert taken and len(told) == 1  # it was waited for until it had stood still for so long


# --- who has lost it -------------------------------------------------------------------------------------------------


def test_a_holder_that_was_suspended_while_another_took_over_writes_nothing_more(stage):
    """Ctrl-Z for an hour on one node of a cluster while the same command was typed on another one."""
    with holder(stage, "nodeA", timeout_s=0.3) as first:
        assert tell(first, "first") == "wrote\n"
        suspend(first)
        with holder(stage, "nodeB", timeout_s=0.3) as second:
            assert tell(second, "second") == "wrote\n"
            first.send_signal(signal.SIGCONT)
            said = tell(first, "finish")
            assert said.startswith("lost: ") and f"process {second.pid} on nodeB has taken it over" in said
            assert first.wait(10) == 0
            assert (stage.status()["said"], stage.done) == ("second", False)
            assert tell(second, "finish") == "wrote\n"  # whose lock is still its own
    assert stage.done


def test_a_holder_whose_lock_was_taken_over_leaves_the_new_one_alone(stage):
    """It neither removes it nor keeps it alive."""
    with hold(stage.path, 0.12, pytest.fail):
        file = write_lock(stage, age_s=30)
        written = file.stat().st_mtime_ns
        deadline = time.time() + 5
        while not lock.is_lost(stage.path) and time.time() < deadline:
            time.sleep(0.01)
        assert lock.is_lost(stage.path)
        for write in (lambda: stage.set_status(state="done"), lambda: stage.finish(Result("sft", "f", 1.0, {}))):
            with pytest.raises(LockLost, match="process 1 on elsewhere has taken it over"):
                write()
    assert json.loads(file.read_text())["token"] == "theirs"
    assert file.stat().st_mtime_ns == written and list(stage.path.iterdir()) == [file]


def test_a_holder_whose_lock_was_removed_stops(stage):
    with hold(stage.path, 60, pytest.fail):
        (stage.path / "lock").unlink()
        with pytest.raises(LockLost, match="its lock has gone"):
            stage.set_status(state="running")
    assert list(stage.path.iterdir()) == []


def test_who_holds_no_lock_may_write(stage):
    """A job that is submitted is noted in its stage's directory before anything runs there."""
    write_lock(stage)
    stage.set_status(state="queued")
    assert stage.status()["state"] == "queued"


def test_only_the_stale_lock_that_was_seen_is_removed(stage):
    file = write_lock(stage, age_s=100)
    seen = lock.read_lock(file)
    write_lock(stage, age_s=100, token="of a third one")
    lock.remove_stale(file, seen)
    assert json.loads(file.read_text())["token"] == "of a third one"
    write_lock(stage, age_s=1)  # it was renewed in that moment
    lock.remove_stale(file, seen)
    assert json.loads(file.read_text())["token"] == "theirs"
    lock.remove_stale(file, lock.read_lock(file))
    assert not file.exists()
    lock.remove_stale(file, seen)  # somebody else was quicker
    assert list(stage.path.iterdir()) == []
