import re
import signal
import subprocess
import sys
import time

import pytest

from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import check_imported_code, read_spec, write_spec
from rlhf.experiment.sweep import Task
from rlhf.launch.scheduler import run_stage_here
from rlhf.launch.workers import last_error, terminate, watch


def process(code):
    return subprocess.Popen([sys.executable, "-c", code], text=True, start_new_session=True, stdout=subprocess.DEVNULL)


def test_the_rank_that_failed_is_named_and_the_others_are_ended():
    workers = [
        process("import time; time.sleep(60)"),
        process("raise SystemExit(3)"),
        process("import time; time.sleep(60)"),
    ]
    started = time.time()
    assert watch(workers, 10.0) == [None, 3, None]
    terminate(workers)
    assert time.time() - started < 10
    assert [worker.poll() for worker in workers] == [-signal.SIGTERM, 3, -signal.SIGTERM]


def test_a_worker_that_ignores_the_request_is_killed(monkeypatch):
    monkeypatch.setattr("rlhf.launch.workers.GRACE_S", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", code], text=True, start_new_session=True, stdout=subprocess.PIPE)
    assert worker.stdout.readline() == "ready\n"
    terminate([worker])
    assert worker.poll() == -signal.SIGKILL


def test_all_done_is_no_failure():
    assert watch([process("pass"), process("pass")], 10.0) == [0, 0]


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("starting\nTraceback (most recent call last):\n  File x\nValueError: bad\nnoise\n", "ValueError: bad"),
        (
            "error: ppo.actor=x: there is no such directory; give another\n",
            "error: ppo.actor=x: there is no such directory; give another",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("only noise\n", "only noise"),
        ("", "no output"),
    ],
)
def test_the_line_that_says_what_went_wrong(tmp_path, log, line):
    (tmp_path / "log").write_text(log)
    assert last_error(tmp_path / "log") == line


@pytest.mark.slow
def test_a_failing_stage_names_rank_reason_and_log(make_config, tmp_path):
    from rich.console import Console

    actor = tmp_path / "actor"
    actor.mkdir()
    (actor / "config.json").write_text("{}")
    overrides = (
        "stage=ppo",
        f"ppo.actor={actor}",
        f"ppo.reward={actor}",
        "hardware.gpus_per_node=2",
        f"output_root={tmp_path}",
    )
    config = make_config(*overrides)
    (node,) = build_graph(config)
    outcome = run_stage_here(Task(node, config), Console(quiet=True), None)
    assert outcome.state == "failed" and outcome.log.name.startswith("rank-")
    assert re.search(r"^ppo: rank \d failed: .*actor.*rank-\d\.log", outcome.reason) and "\n" not in outcome.reason
    assert node.directory.status()["state"] == "failed" and "actor" in node.directory.status()["reason"]
    assert not (node.directory.path / "lock").exists()


def test_a_spec_survives_freezing_and_refuses_other_code(make_config, tmp_path, monkeypatch):
    from rlhf.config.errors import ConfigError

    config = make_config("stage=sft", f"output_root={tmp_path}")
    (node,) = build_graph(config)
    spec = write_spec(node, config)
    assert read_spec(spec.file) == spec
    monkeypatch.setattr("rlhf.experiment.spec.code_hash", lambda: "other")
    with pytest.raises(ConfigError, match="allow_code_change"):
        read_spec(spec.file)


def test_a_process_whose_code_has_changed_since_its_first_stage_runs_no_other(make_config, tmp_path, monkeypatch):
    from rlhf.config.errors import ConfigError

    config = make_config("stage=sft", f"output_root={tmp_path}")
    (node,) = build_graph(config)
    check_imported_code(write_spec(node, config))
    monkeypatch.setattr("rlhf.experiment.spec.code_hash", lambda: "other")
    with pytest.raises(ConfigError, match="since this process began its first stage"):
        check_imported_code(write_spec(node, config))
    config.launcher.allow_code_change = True
    check_imported_code(write_spec(node, config))


@pytest.mark.parametrize("allowed", [False, True])
def test_a_spec_with_the_keys_of_an_older_release_is_refused_in_one_line(make_config, tmp_path, monkeypatch, allowed):
    from rlhf.config.errors import ConfigError

    config = make_config("stage=sft", f"output_root={tmp_path}", f"launcher.allow_code_change={allowed}")
    (node,) = build_graph(config)
    file = write_spec(node, config).file
    file.write_text(file.read_text().replace('"hidden_size"', '"width"'))
    monkeypatch.setattr("rlhf.experiment.spec.code_hash", lambda: "other")
    expected = "another release launched this stage: Key 'width'" if allowed else "the package has changed"
    with pytest.raises(ConfigError, match=expected) as error:
        read_spec(file)
    assert "\n" not in str(error.value)
