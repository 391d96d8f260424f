"""Workers that are forked from a server: what they compute, what they leave, and what becomes of one that dies."""

import json
import signal
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from rlhf.experiment.graph import build_graph
from rlhf.experiment.sweep import Task
from rlhf.launch import warm, worker, workers
from rlhf.launch.scheduler import run_here

TINY = (
    "stage=sft", "model.num_hidden_layers=1", "data.demo.demonstrations=120", "data.demo.rounds=1",
    "data.demo.heldout_prompts=16", "sft.max_steps=3", "launcher=local", "launcher.threads=1",
)  # fmt: skip
MACHINE = ("time", "throughput/", "memory/")


@pytest.fixture
def make_tasks(make_config, tmp_path):
    """`make_tasks("warm", *overrides)`: a stage for each of two seeds, below a directory of this name."""

    def make(name, *overrides):
        configs = [make_config(*TINY, f"seed={seed}", f"output_root={tmp_path / name}", *overrides) for seed in (1, 2)]
        return [Task(build_graph(config)[0], config) for config in configs]

    return make


def read_steps(task):
    lines = map(json.loads, task.node.directory.metrics_file.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith(MACHINE)} for line in lines]


def read_model(task):
    return {file.name: file.read_bytes() for file in (task.node.directory.path / "model").glob("*.safetensors")}


@pytest.fixture
def forked(monkeypatch):
    """The ranks that are forked, in the order in which they start."""
    ranks = []

    def fork(spec, environment):
        name = "PYTEST_CURRENT_TEST"  # which changes from test to test, while the server stays
        monkeypatch.delenv(name, raising=False)
        ranks.append(warm.fork(spec, {key: value for key, value in environment.items() if key != name}))
        return ranks[-1]

    monkeypatch.setattr("rlhf.launch.scheduler.fork", fork)
    return ranks


@pytest.mark.slow
def test_warm_workers_compute_the_same_bits_as_cold_ones_and_give_their_memory_back(make_tasks, forked, monkeypatch):
    tasks = {name: make_tasks(name) for name in ("warm", "cold")}
    held = []
    for task in tasks["warm"]:
        assert run_here([task], Console(quiet=True))[task.key].state == "done"
        (server,) = [found for found in psutil.Process().children() if warm.PRELOAD in str(found.cmdline())]
        held.append((server.pid, server.memory_full_info().uss))
    assert len(forked) == 2 and not any(psutil.pid_exists(rank.pid) for rank in forked)
    (first, before), (second, after) = held
    assert first == second and after - before < 2**20, "the server holds what it held before the second stage"

    monkeypatch.setattr("rlhf.launch.scheduler.fork", workers.spawn)
    assert {outcome.state for outcome in run_here(tasks["cold"], Console(quiet=True)).values()} == {"done"}
    for one, other in zip(*tasks.values(), strict=True):
        assert read_steps(one) == read_steps(other) and len(read_steps(one)) >= 3
        assert read_model(one) == read_model(other) and read_model(one)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported_and_the_next_stage_trains(make_tasks, forked):
    one, other = make_tasks("long", "sft.max_steps=null", "sft.epochs=100000")[0], make_tasks("short")[1]
    commands = []

    def kill():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not one.node.directory.counted("step"):
            time.sleep(0.05)
        commands.append(str(psutil.Process(forked[0].pid).cmdline()))
        forked[0].send_signal(signal.SIGSEGV)

    threading.Thread(target=kill, daemon=True).start()
    failed, done = run_here([one, other], Console(quiet=True)).values()
    assert warm.PRELOAD in commands[0], "it was forked, and did not start cold"
    assert failed.state == "failed" and "rank 0 failed: it was ended by SIGSEGV" in failed.reason
    assert done.state == "done"


# --- when a worker may start from the server's memory ---------------------------------------------------------------------


@pytest.fixture
def found(monkeypatch, tmp_path):
    """What the server found when it started; the environment of a rank that may be forked."""
    server = SimpleNamespace(ENVIRONMENT={"HOME": "/home", "OMP_NUM_THREADS": "2"}, CODE="code")
    monkeypatch.setitem(sys.modules, warm.PRELOAD, server)
    monkeypatch.setattr("rlhf.experiment.fingerprint.code_hash", lambda: "code")
    return server.ENVIRONMENT | worker.rank_environment(1, 1, 2, 29500) | {worker.PARENT: "1", "CUDA_VISIBLE_DEVICES": "3"}


def test_ranks_differ_from_the_server_in_their_own_variables_alone(found):
    assert warm.is_as_started(found)
    assert not warm.is_as_started(found | {"OMP_NUM_THREADS": "1"})
    assert not warm.is_as_started(found | {"TRANSFORMERS_OFFLINE": "1"})
    assert not warm.is_as_started({name: value for name, value in found.items() if name != "HOME"})


def test_code_that_has_changed_since_the_server_started_is_imported_anew(found, monkeypatch):
    monkeypatch.setattr("rlhf.experiment.fingerprint.code_hash", lambda: "other")
    assert not warm.is_as_started(found)


def test_ranks_start_cold_where_imports_have_touched_cuda(found, monkeypatch):
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    assert not warm.is_as_started(found)


def test_ranks_start_cold_where_the_server_could_import_nothing(found, monkeypatch):
    monkeypatch.delitem(sys.modules, warm.PRELOAD)
    assert not warm.is_as_started(found)
