import json
import os
import threading
import time
from pathlib import Path

import pytest

from rlhf.config.disk import disk_problem
from rlhf.experiment.stage_directory import Result, StageDirectory
from rlhf.experiment.store import write_atomic, write_json


@pytest.fixture
def stage(tmp_path):
    return StageDirectory(tmp_path / "sft-0123456789ab")


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    file = tmp_path / "new" / "status.json"
    write_atomic(file, "old")
    seen = []
    replace = os.replace

    def noted(source, target):
        seen.append((Path(source).read_text(), Path(target).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    write_atomic(file, "new")
    assert seen == [("new", "old")]
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def test_what_replaces_a_file_is_on_the_disk_first_and_its_name_before_the_next(tmp_path, monkeypatch):
    """Else a loss of power may leave a file of the right name with nothing in it."""
    file, seen = tmp_path / "result.json", []
    replace, fsync = os.replace, os.fsync

    def noted(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        seen.append(("synced", "directory" if path == tmp_path else path.read_text()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", lambda source, target: (seen.append(("replaced", "")), replace(source, target)))
    write_atomic(file, "new")
    assert seen == [("synced", "new"), ("replaced", ""), ("synced", "directory")]
    seen.clear()
    write_atomic(file, "newer", durable=False)  # a heartbeat
    assert seen == [("replaced", "")] and file.read_text() == "newer"


def test_a_full_disk_is_named_with_the_file_and_what_is_free(small_disk):
    disk = small_disk(16384)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_json(disk / "stages" / "result.json", {"text": "x" * 100_000})
    assert disk_problem(caught.value, Path("elsewhere")) == (
        f"No space left on device: {disk / 'stages' / 'result.json'} (0.0 MiB are free there)"
    )
    assert list((disk / "stages").iterdir()) == []
    nameless = OSError(28, "No space left on device")  # as the end of a write says it
    assert disk_problem(nameless, disk / "new").startswith(f"No space left on device: {disk / 'new'} (0.0 MiB")
    assert disk_problem(PermissionError(13, "Permission denied", "/x/y"), disk) == "Permission denied: /x/y"


def test_readers_never_see_half_a_file(tmp_path):
    file, texts = tmp_path / "status.json", ["a" * 300_000, "b" * 300_000]
    write_atomic(file, texts[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for text in texts:
                write_atomic(file, text)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(file.read_text() in texts for _ in range(100))
    finally:
        stop.set()
        thread.join()


def test_a_stage_is_done_when_its_result_is_there(stage):
    assert not stage.done
    stage.set_status(state="running")
    assert not stage.done
    result = Result("sft", "f" * 64, 1.5, {"eval/perplexity": 2.0, "eval/loss": float("inf")})
    stage.finish(result)
    assert stage.done
    assert stage.result() == result


def test_status_keeps_what_is_not_changed_and_has_a_heartbeat(stage):
    assert stage.status() == {}
    stage.set_status(state="running", step=1)
    stage.set_status(step=2)
    status = stage.status()
    assert (status["state"], status["step"]) == ("running", 2)
    assert status["heartbeat"] == pytest.approx(time.time(), abs=5)


def test_clearing_leaves_status_and_log(stage):
    stage.set_status(state="failed", attempts=1)
    for name in ("metrics.jsonl", "samples.jsonl", "model/config.json", "model.partial/x", "logs/rank-0.log", "lock"):
        write_atomic(stage.path / name, "x")
    stage.clear()
    left = {str(p.relative_to(stage.path)) for p in stage.path.rglob("*") if p.is_file()}
    assert left == {"status.json", "logs/rank-0.log", "lock"}
    stage.clear()  # nothing left to remove
