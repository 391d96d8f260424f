import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.experiment import lock
from rlhf.experiment.lock import locked
from rlhf.experiment.store import StageDirectory


@pytest.fixture
def stage(tmp_path):
    return StageDirectory(tmp_path / "sft-0123456789ab")


@pytest.fixture
def quick(monkeypatch):
    """A waiting process looks at the lock every few milliseconds instead of every second."""
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=lambda _: time.sleep(0.005), time=time.time))


def write_lock(stage, host, pid, age_s=0.0, text=None):
    """A lock as another process would have left it."""
    stage.path.mkdir(parents=True, exist_ok=True)
    file = stage.path / "lock"
    file.write_text(json.dumps({"host": host, "pid": pid, "token": "theirs"}) if text is None else text)
    os.utime(file, (time.time() - age_s, time.time() - age_s))
    return file


def taken_within(stage, seconds, timeout_s):
    """Whether the lock can be had in so many seconds; whoever still waits then is let go."""
    got, told = threading.Event(), []

    def take():
        with locked(stage, timeout_s, told.append):
            got.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    taken = got.wait(seconds)
    if not taken:
        (stage.path / "lock").unlink(missing_ok=True)
    thread.join(5)
    return taken, told


def test_a_free_lock_is_taken_and_given_back(stage):
    with locked(stage, 60, pytest.fail):
        holder = json.loads((stage.path / "lock").read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert not (stage.path / "lock").exists()


def test_a_lock_is_given_back_after_an_error(stage):
    with pytest.raises(RuntimeError), locked(stage, 60, pytest.fail):
        raise RuntimeError
    assert not (stage.path / "lock").exists()


HOLD = """
import sys, time
from pathlib import Path
from rlhf.experiment.lock import locked
from rlhf.experiment.store import StageDirectory
place = Path(sys.argv[1])
with locked(StageDirectory(place), 60, lambda text: print("waiting", flush=True)):
    print("holding", flush=True)
    if sys.argv[2] == "die":
        import os
        os._exit(1)
    sys.stdin.readline()
    (place / "finished").write_text("")
"""


def start_holder(stage, how="hold"):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(stage.path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(lock.__file__).parents[2],
    )


def test_a_second_process_waits_until_the_first_is_done(stage, quick):
    with start_holder(stage) as first:
        assert first.stdout.readline() == "holding\n"
        told = []

        def release(text):
            told.append(text)
            assert not (stage.path / "finished").exists()
            first.stdin.write("\n")
            first.stdin.flush()

        with locked(stage, 60, release):
            assert (stage.path / "finished").exists()
            assert json.loads((stage.path / "lock").read_text())["pid"] == os.getpid()
    (text,) = told  # said once
    assert str(first.pid) in text
    assert socket.gethostname() in text
    assert stage.path.name in text


def test_a_dead_holders_lock_is_taken_over_at_once(stage, quick):
    with start_holder(stage, "die") as dead:
        assert dead.stdout.readline() == "holding\n"
        assert dead.wait(10) == 1
    assert (stage.path / "lock").exists()
    assert taken_within(stage, 5, timeout_s=3600) == (True, [])


def test_a_living_holders_lock_is_not_taken_over(stage, quick):
    write_lock(stage, socket.gethostname(), os.getppid())
    taken, told = taken_within(stage, 0.3, timeout_s=60)
    assert not taken
    assert len(told) == 1


def test_a_silent_remote_holders_lock_is_taken_over_after_the_timeout(stage, quick):
    write_lock(stage, "elsewhere", 1, age_s=61)
    assert taken_within(stage, 5, timeout_s=60) == (True, [])


def test_a_remote_holder_with_a_heartbeat_is_waited_for(stage, quick):
    """Its lock outlives the timeout as long as it is renewed, and is taken over when that stops."""
    file = write_lock(stage, "elsewhere", 1)
    stop = threading.Event()
    heart = threading.Thread(target=lock.beat, args=(file, stop, 0.02), daemon=True)
    heart.start()
    got = threading.Event()

    def take():
        with locked(stage, 0.4, lambda text: None):
            got.set()

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    assert not got.wait(0.9)
    stop.set()
    heart.join()
    assert got.wait(5)
    taker.join(5)


def test_a_holder_renews_its_lock(stage):
    with locked(stage, 0.12, pytest.fail):
        first = (stage.path / "lock").stat().st_mtime_ns
        deadline = time.time() + 5
        while (stage.path / "lock").stat().st_mtime_ns == first and time.time() < deadline:
            time.sleep(0.01)
        assert (stage.path / "lock").stat().st_mtime_ns > first


def test_a_number_that_another_process_has_by_now_does_not_block_for_ever(stage, quick):
    """The holder died, its process number was given to another one (a restarted machine or container), and nobody has
    renewed the lock for longer than the timeout."""
    write_lock(stage, socket.gethostname(), os.getppid(), age_s=3600)
    assert taken_within(stage, 1, timeout_s=60)[0]


def test_a_lock_that_its_maker_could_not_fill_does_not_block_for_ever(stage, quick):
    """A process killed between making the file and writing its name into it."""
    write_lock(stage, "", 0, age_s=3600, text="")
    assert taken_within(stage, 1, timeout_s=60)[0]


def test_a_holder_whose_lock_was_taken_over_leaves_the_new_one_alone(stage):
    with locked(stage, 60, pytest.fail):
        file = write_lock(stage, "elsewhere", 1)
    assert file.exists()
    assert json.loads(file.read_text())["token"] == "theirs"


def test_only_the_stale_lock_that_was_seen_is_removed(stage):
    file = write_lock(stage, "elsewhere", 1)
    lock.remove_stale(file, {"host": "elsewhere", "pid": 1, "token": "an older one"})
    assert json.loads(file.read_text())["token"] == "theirs"
    lock.remove_stale(file, {"host": "elsewhere", "pid": 1, "token": "theirs"})
    assert not file.exists()
    lock.remove_stale(file, {"host": "elsewhere", "pid": 1, "token": "theirs"})  # somebody else was quicker
    assert list(stage.path.iterdir()) == []
