"""Stages on this machine: order, what is skipped, several at a time, signals, and processes that die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console
from support.command import ROOT

from rlhf.experiment import stopping
from rlhf.experiment.graph import Node, build_graph
from rlhf.experiment.spec import build_spec
from rlhf.experiment.stage_directory import Result, StageDirectory
from rlhf.experiment.stopping import EXIT_CHECKPOINTED, Stopped
from rlhf.experiment.sweep import Outcome, Task
from rlhf.launch.scheduler import local_threads, run_here, share_of_devices
from rlhf.launch.worker import error_file
from rlhf.launch.workers import StageFailed, note_killed, raise_on_failure

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch):
    """Requests to stop end with their test."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert handlers == {number: signal.getsignal(number) for number in handlers}  # and handlers are put back
    stopping.stop_requested.clear()
    stopping.abort_requested.clear()


@pytest.fixture
def tasks(make_config, tmp_path):
    """`tasks({"a": (), "b": ("a",)}, *overrides)`: stages by name, with the names of those that they need."""

    def make(needs, *overrides):
        config = make_config(*overrides)
        places = {name: StageDirectory(tmp_path / "stages" / name) for name in needs}
        return [Task(Node("sft", name, places[name], {}, tuple(parents)), config) for name, parents in needs.items()]

    return make


class Training:
    """Stands in for a stage whose lock is held: `act(name)` may return an outcome; notes the order, how many ran at once,
    and the devices."""

    def __init__(self, monkeypatch, act=lambda name: None):
        self.act, self.guard, self.running = act, threading.Lock(), {}
        self.started, self.ended, self.peak, self.devices = [], [], 0, []
        monkeypatch.setattr("rlhf.launch.scheduler.run_locked", self)

    def __call__(self, task, console, devices):
        with self.guard:
            self.running[task.key] = devices
            self.started.append(task.key)
            self.peak = max(self.peak, len(self.running))
            self.devices.append([found.gpus for found in self.running.values() if found is not None])
        try:
            return self.act(task.key) or Outcome("done")
        finally:
            with self.guard:
                del self.running[task.key]
                self.ended.append(task.key)


def states(outcomes):
    return {key: outcome.state for key, outcome in outcomes.items()}


# --- the graph -------------------------------------------------------------------------------------------------------

DIAMOND = {"a": (), "b": (), "c": ("a",), "d": ("b",), "e": ("a", "b")}


@pytest.mark.parametrize("parallel", [1, 2, 9])
def test_every_stage_runs_once_after_what_it_needs(monkeypatch, tasks, parallel):
    training = Training(monkeypatch, lambda name: time.sleep(0.02))
    outcomes = run_here(tasks(DIAMOND, f"launcher.parallel={parallel}"), QUIET)
    assert states(outcomes) == dict.fromkeys(DIAMOND, "done")
    assert sorted(training.started) == sorted(DIAMOND) and training.peak <= parallel
    if parallel == 1:
        assert training.started == list(DIAMOND)
    for name, parents in DIAMOND.items():
        ends = [training.ended.index(parent) for parent in parents]
        assert all(end < training.ended.index(name) for end in ends)


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_fails_stops_what_needs_it_and_nothing_else(monkeypatch, tasks, parallel):
    training = Training(monkeypatch, lambda name: Outcome("failed", "bad luck") if name == "a" else None)
    needs = {**DIAMOND, "f": ("c",)}
    outcomes = run_here(tasks(needs, f"launcher.parallel={parallel}"), QUIET)
    assert states(outcomes) == {
        "a": "failed", "b": "done", "c": "skipped", "d": "done", "e": "skipped", "f": "skipped",
    }  # fmt: skip
    assert (outcomes["c"].reason, outcomes["f"].reason) == ("a failed", "c skipped")
    assert sorted(training.started) == ["a", "b", "d"]


def test_what_was_done_meanwhile_is_reused(monkeypatch, tasks):
    training = Training(monkeypatch)
    both = tasks({"a": (), "b": ("a",)})
    both[0].node.directory.finish(Result("sft", "a", 1.0, {}))
    assert states(run_here(both, QUIET)) == {"a": "reused", "b": "done"}
    assert training.started == ["b"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_directory_that_cannot_be_made_is_a_failure_and_no_crash(monkeypatch, tasks, tmp_path, parallel):
    training = Training(monkeypatch)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "a").write_text("in the way")
    outcomes = run_here(tasks({"a": (), "b": ()}, f"launcher.parallel={parallel}"), QUIET)
    assert states(outcomes) == {"a": "failed", "b": "done"} and training.started == ["b"]
    assert str(tmp_path / "stages" / "a") in outcomes["a"].reason


# --- several at a time -----------------------------------------------------------------------------------------------


def test_two_at_a_time_really_overlap_and_never_are_three(monkeypatch, tasks):
    together = threading.Barrier(2)
    training = Training(monkeypatch, lambda name: together.wait(timeout=20) and None)
    outcomes = run_here(tasks(dict.fromkeys("abcdef", ()), "launcher.parallel=2"), QUIET)
    assert states(outcomes) == dict.fromkeys("abcdef", "done") and training.peak == 2


@pytest.mark.parametrize(
    ("visible", "shares"),
    [("3,5,6,7", {("3", "5"), ("6", "7")}), ("MIG-a,MIG-b,MIG-c,MIG-d", {("MIG-a", "MIG-b"), ("MIG-c", "MIG-d")}),
     (None, {("0", "1"), ("2", "3")})],
)  # fmt: skip
def test_stages_that_run_at_once_share_no_device(monkeypatch, tasks, visible, shares):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    training = Training(monkeypatch, lambda name: time.sleep(0.02))
    wanted = tasks(dict.fromkeys("abcdef", ()), "launcher.parallel=2", "hardware=h100", "hardware.gpus_per_node=2")
    assert states(run_here(wanted, QUIET)) == dict.fromkeys("abcdef", "done")
    used = [gpus for at_once in training.devices for gpus in at_once]
    assert {tuple(gpus) for gpus in used} == shares
    for at_once in training.devices:
        names = [name for gpus in at_once for name in gpus]
        assert len(names) == len(set(names)) and len(at_once) <= 2


def test_one_stage_has_all_threads_and_several_share_them(monkeypatch, tasks):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4, 20)))
    for overrides, parallel, threads in (
        ((), 1, 16),
        (("hardware.gpus_per_node=2",), 1, 8),
        (("hardware.gpus_per_node=2",), 4, 2),
        (("hardware.gpus_per_node=8",), 4, 1),
        (("launcher.threads=3",), 4, 3),
    ):
        (task,) = tasks({"a": ()}, *overrides)
        assert local_threads(task.config, parallel) == threads
        assert share_of_devices(task, 0, parallel).threads == threads
        assert share_of_devices(task, 0, parallel).gpus is None  # the CPU needs no names


def test_stages_that_run_at_once_on_the_cpu_share_no_core(monkeypatch, tasks):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 2, 3, 6, 7})
    (task,) = tasks({"a": ()})
    assert [share_of_devices(task, number, 2).cores for number in range(2)] == [[1, 2], [3, 6]]
    assert share_of_devices(task, 0, 1).cores is None  # all of them
    assert share_of_devices(task, 7, 8).cores is None  # more stages than cores


# --- being asked to stop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("parallel", [1, 2])
def test_nothing_is_started_any_more_once_a_stop_is_asked_for(monkeypatch, tasks, parallel, number):
    together = threading.Barrier(parallel)

    def act(name):
        if together.wait(timeout=20) == 0:
            os.kill(os.getpid(), number)
        assert stopping.stop_requested.wait(timeout=20)
        return Outcome("stopped", "saved as step-000003")

    training = Training(monkeypatch, act)
    outcomes = run_here(tasks({"a": (), "b": (), "c": (), "d": ("a",)}, f"launcher.parallel={parallel}"), QUIET)
    assert states(outcomes) == dict.fromkeys("abcd", "stopped")
    assert sorted(training.started) == ["a", "b"][:parallel]
    assert {outcomes[name].reason for name in "cd"} == {"not started"}
    assert outcomes["a"].reason == "saved as step-000003"


def test_a_second_ctrl_c_ends_at_once(monkeypatch, tasks):
    def act(name):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

    training = Training(monkeypatch, act)
    with pytest.raises(KeyboardInterrupt):
        run_here(tasks({"a": (), "b": ()}), QUIET)
    assert training.started == ["a"] and stopping.abort_requested.is_set()


@contextmanager
def someone_else_trains(task):
    """The lock as a living process of this machine holds it; let go after a while, lest a test hangs."""
    place = task.node.directory.path
    place.mkdir(parents=True)
    content = {"host": os.uname().nodename, "pid": os.getppid(), "token": "theirs"}
    (place / "lock").write_text(json.dumps(content))
    rescue = threading.Timer(8.0, lambda: (place / "lock").unlink(missing_ok=True))
    rescue.start()
    yield
    rescue.cancel()


@pytest.mark.parametrize(("parallel", "number"), [(1, signal.SIGTERM), (1, signal.SIGHUP), (2, signal.SIGINT)])
def test_who_waits_for_another_process_can_be_stopped(monkeypatch, tasks, parallel, number):
    training = Training(monkeypatch, lambda name: stopping.stop_requested.wait(timeout=20) and Outcome("stopped", "saved"))
    wanted = tasks({"a": (), "b": ()}, f"launcher.parallel={parallel}")
    with someone_else_trains(wanted[0]):
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        started = time.monotonic()
        outcomes = run_here(wanted, QUIET)
        assert time.monotonic() - started < 5
        assert states(outcomes) == {"a": "stopped", "b": "stopped"} and "a" not in training.started
        assert (wanted[0].node.directory.path / "lock").exists()  # it was not ours to remove


TRAIN_ONCE = """
import sys, time
from pathlib import Path
from rich.console import Console
import rlhf.launch.scheduler as here
from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.sweep import Outcome, Task
from rlhf.cli.prepare import load_config

def train(task, console, devices):
    with (Path(sys.argv[1]) / "trained").open("a") as file:
        file.write("once\\n")
    time.sleep(1.0)
    task.node.directory.finish(Result("sft", task.key, 1.0, {}))
    return Outcome("done")

here.run_locked = train
config = load_config("stage=sft", f"output_root={sys.argv[1]}")
(node,) = build_graph(config)
(outcome,) = here.run_here([Task(node, config)], Console(soft_wrap=True)).values()
print(outcome.state)
"""


def test_two_processes_that_want_one_stage_train_it_once(tmp_path):
    command = [sys.executable, "-c", TRAIN_ONCE, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(output.splitlines()[-1] for output in outputs) == ["done", "reused"]
    assert (tmp_path / "trained").read_text() == "once\n"
    (waited,) = [output for output in outputs if output.endswith("reused\n")]
    assert "is being trained by process" in waited and "done by another process" in waited
    assert not list(tmp_path.rglob("lock"))


# --- what exit codes and notes come to -----------------------------------------------------------------------------


@pytest.fixture
def spec(make_config, tmp_path):
    """A stage of four ranks, each with a log."""
    config = make_config("stage=sft", "hardware.gpus_per_node=4")
    config.output_root = str(tmp_path)
    (node,) = build_graph(config)
    for rank in range(4):
        log = node.directory.path / "logs" / f"rank-{rank}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"starting\nRuntimeError: the log of {rank}\n")
    return build_spec(node, config)


def note(spec, rank, at):
    """What a rank leaves when it fails."""
    error_file(spec, rank).write_text(json.dumps({"time": at, "error": f"ValueError: the note of {rank}"}))


def judged(spec, *codes):
    with pytest.raises(StageFailed) as failed:
        raise_on_failure(spec, dict(enumerate(codes)))
    assert "\n" not in str(failed.value) and str(failed.value.log) in str(failed.value)
    return str(failed.value).removeprefix("sft: ").rpartition(" (log: ")[0], failed.value.log.name


def test_all_that_ended_well_is_no_failure(spec):
    raise_on_failure(spec, {0: 0, 1: 0, 2: 0, 3: 0})
    raise_on_failure(spec, {0: None, 1: None})  # another job does the stage


def test_who_failed_first_is_named_with_what_it_noted(spec):
    note(spec, 0, 20.0), note(spec, 2, 10.0)
    assert judged(spec, 1, None, None, None) == ("rank 2 failed: ValueError: the note of 2", "rank-2.log")


def test_who_was_killed_is_named_before_those_that_missed_it(spec):
    note(spec, 0, 10.0), note(spec, 2, 11.0)
    said = "rank 3 failed: it was ended by SIGKILL (out of memory?)"
    assert judged(spec, 1, None, 1, -signal.SIGKILL) == (said, "rank-3.log")
    assert judged(spec, 1, None, 1, -signal.SIGSEGV)[0] == "rank 3 failed: it was ended by SIGSEGV"


def test_other_nodes_name_who_was_killed_too(spec):
    note(spec, 0, 10.0)
    note_killed(spec, {2: None, 3: -signal.SIGKILL})
    said = ("rank 3 failed: it was ended by SIGKILL (out of memory?)", "rank-3.log")
    assert judged(spec, 1, None) == said  # on the node of ranks 0 and 1, which noted its error before
    with pytest.raises(StageFailed, match=r"rank 3 failed: it was ended by SIGKILL"):
        raise_on_failure(spec, {2: None, 3: -signal.SIGKILL})


def test_who_noted_nothing_is_asked_by_its_log(spec):
    assert judged(spec, 0, 1, None, None) == ("rank 1 failed: RuntimeError: the log of 1", "rank-1.log")
    (Path(spec.directory) / "logs" / "rank-1.log").unlink()
    assert judged(spec, 0, 1, None, None)[0] == "rank 1 failed: no output"


def test_a_rank_of_another_node_is_named_too(spec):
    note(spec, 3, 5.0)
    with pytest.raises(StageFailed, match=r"^sft: rank 3 failed: ValueError: the note of 3 "):
        raise_on_failure(spec, {0: None, 1: None})


@pytest.fixture
def asked(monkeypatch):
    event = threading.Event()
    monkeypatch.setattr(stopping, "stop_requested", event)
    event.set()


def test_who_saved_because_it_was_asked_to_is_no_failure(spec, asked):
    StageDirectory(Path(spec.directory)).set_status(reason="saved as step-000004")
    with pytest.raises(Stopped, match=r"^saved as step-000004$"):
        raise_on_failure(spec, dict.fromkeys(range(4), EXIT_CHECKPOINTED))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_was_ended_before_it_could_save_is_no_failure_either(spec, asked, number):
    with pytest.raises(Stopped, match="before it could save"):
        raise_on_failure(spec, {0: EXIT_CHECKPOINTED, 1: -number, 2: -number, 3: None})


def test_who_was_asked_to_stop_was_not_killed(spec, asked):
    note_killed(spec, {0: -signal.SIGTERM})
    assert not error_file(spec, 0).exists()


def test_an_error_while_it_was_asked_to_stop_is_one(spec, asked):
    assert judged(spec, EXIT_CHECKPOINTED, -signal.SIGSEGV, None, None)[0] == "rank 1 failed: it was ended by SIGSEGV"
    note(spec, 2, 1.0)
    assert judged(spec, EXIT_CHECKPOINTED, EXIT_CHECKPOINTED, 1, None)[0] == "rank 2 failed: ValueError: the note of 2"


# --- real processes ------------------------------------------------------------------------------------------------

# What a worker imports to train, replaced: each rank does what FAKE says of it.
FAKE = """
import json, os, signal, sys, time, types
from pathlib import Path

def run_stage(spec):
    from rlhf.config.errors import ConfigError
    from rlhf.experiment import stopping
    from rlhf.experiment.stage_directory import StageDirectory
    from rlhf.experiment.store import write_atomic
    rank, directory = os.environ["RANK"], Path(spec.directory)
    print("rank", rank, "is here", flush=True)
    write_atomic(directory / "here" / rank, str(os.getpid()))
    what = json.loads(os.environ["FAKE"]).get(rank, "train")
    while len(list((directory / "here").glob("[0-9]"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if what == "raise":
        raise RuntimeError("bad luck\\nand more of it")
    if what == "refuse":
        raise ConfigError("model.path", "x", "it is not there", "give another")
    if what == "exit":
        print("ImportError: no such thing", flush=True)
        os._exit(3)
    while what == "deaf" or not stopping.stop_requested.is_set():
        time.sleep(0.01)
    StageDirectory(directory).set_status(state="stopped", reason="saved as step-000007")
    raise stopping.Stopped("saved as step-000007")

for module in ("rlhf.runtime.distributed", "rlhf.stages.run"):
    sys.modules[module] = types.ModuleType(module)
sys.modules["rlhf.runtime.distributed"].start = lambda config: None
sys.modules["rlhf.stages.run"].run_stage = run_stage
"""


@pytest.fixture
def fake(monkeypatch, tmp_path, make_config):
    """`fake(**{"1": "raise"})`: a stage of two ranks that run in real processes and do what they are told."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "sitecustomize.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fake'}:{ROOT}")
    monkeypatch.setattr("rlhf.launch.workers.GRACE_S", 0.5)

    def make(*overrides, **what):
        monkeypatch.setenv("FAKE", json.dumps(what))
        config = make_config("stage=sft", "hardware.gpus_per_node=2", *overrides)
        config.output_root = str(tmp_path)
        (node,) = build_graph(config)
        return Task(node, config)

    return make


def living(place):
    """Ranks that run: cold ones by their command line, which names a place, and forked ones by their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            cold = b"rlhf.launch.worker" in words and str(place).encode() in words
            forked = b"rlhf.launch.preload" in words and str(place).encode() in (process / "environ").read_bytes()
            if cold or (forked and os.readlink(process / "fd" / "1") != os.devnull):  # as the server's
                found.append(int(process.name))
        except OSError:
            continue  # it has just ended
    return found


def servers(place):
    """Servers of warm workers, with their ranks."""
    return [process for process in psutil.process_iter() if is_server(process, place)]


def is_server(process, place):
    try:
        return "rlhf.launch.preload" in str(process.cmdline()) and str(place) in process.environ().values()
    except psutil.Error:
        return False


def until(condition, seconds, what):
    """Wait for something; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def when_both_are_there(task, action):
    """Do something as soon as both ranks are at work."""
    here = task.node.directory.path / "here"

    def wait():
        until(lambda: (here / "0").exists() and (here / "1").exists(), 30, "two ranks")
        time.sleep(0.2)
        action({rank: int((here / str(rank)).read_text()) for rank in (0, 1)})

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(
    ("rank", "what", "reason"),
    [
        (0, "raise", "RuntimeError: bad luck"),
        (1, "refuse", "model.path=x: it is not there; give another"),
        (1, "exit", "ImportError: no such thing"),
    ],
)
def test_a_rank_that_fails_is_named_and_the_other_is_ended(fake, tmp_path, rank, what, reason):
    task = fake(**{str(rank): what, str(1 - rank): "deaf"})
    started = time.monotonic()
    (outcome,) = run_here([task], QUIET).values()
    assert time.monotonic() - started < 10
    log = task.node.directory.path / "logs" / f"rank-{rank}.log"
    assert (outcome.state, outcome.log) == ("failed", log)
    assert outcome.reason == f"sft: rank {rank} failed: {reason} (log: {log})"
    assert task.node.directory.status()["state"] == "failed"
    assert living(tmp_path) == [] and not (task.node.directory.path / "lock").exists()


def test_output_is_kept_by_rank_and_shown_of_the_first_with_a_prefix(fake, tmp_path, capsys):
    for parallel, prefix in ((1, "[0]"), (2, "[sft-")):
        task = fake(f"launcher.parallel={parallel}", **{"1": "raise"})
        run_here([task], Console(soft_wrap=True))
        shown = [line for line in capsys.readouterr().out.splitlines() if "is here" in line]
        assert len(shown) == 1 and shown[0].startswith(prefix) and "rank 0 is here" in shown[0]
        logs = [task.node.directory.path / "logs" / f"rank-{rank}.log" for rank in (0, 1)]
        assert ["rank 0 is here" in logs[0].read_text(), "rank 1 is here" in logs[1].read_text()] == [True, True]
        assert "Traceback" in logs[1].read_text() and "and more of it" in logs[1].read_text()


def test_a_rank_that_is_killed_is_named(fake, tmp_path):
    task = fake()
    when_both_are_there(task, lambda pids: os.kill(pids[1], signal.SIGKILL))
    (outcome,) = run_here([task], QUIET).values()
    assert outcome.state == "failed"
    assert outcome.reason.startswith("sft: rank 1 failed: it was ended by SIGKILL (out of memory?)")
    assert living(tmp_path) == []


def test_a_signal_reaches_the_workers_which_save(fake, tmp_path):
    task = fake()
    when_both_are_there(task, lambda pids: os.kill(os.getpid(), signal.SIGTERM))
    (outcome,) = run_here([task], QUIET).values()
    assert (outcome.state, outcome.reason) == ("stopped", "saved as step-000007")
    assert task.node.directory.status()["state"] == "stopped" and living(tmp_path) == []
    assert not (task.node.directory.path / "lock").exists()


def test_workers_that_cannot_save_in_time_are_ended(fake, tmp_path):
    task = fake("launcher.grace_s=0.3", **{"0": "deaf", "1": "deaf"})
    when_both_are_there(task, lambda pids: os.kill(os.getpid(), signal.SIGINT))
    (outcome,) = run_here([task], QUIET).values()
    assert (outcome.state, outcome.reason) == ("stopped", "asked to stop before it could save")
    assert task.node.directory.status()["state"] == "stopped" and living(tmp_path) == []
    assert not (task.node.directory.path / "lock").exists()


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_second_ctrl_c_ends_workers_that_are_saving(fake, tmp_path, parallel):
    deaf = {"0": "deaf", "1": "deaf"}
    wanted = [fake(f"seed={seed}", f"launcher.parallel={parallel}", **deaf) for seed in range(parallel)]

    def ask(pids):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    when_both_are_there(wanted[-1], ask)
    with pytest.raises(KeyboardInterrupt):
        run_here(wanted, QUIET)
    assert living(tmp_path) == []
    for task in wanted:
        assert task.node.directory.status()["state"] == "stopped"
        assert not (task.node.directory.path / "lock").exists()


def command_line(task, *more):
    """`python -m rlhf` for a stage."""
    ranks, root = task.config.hardware.gpus_per_node, task.config.output_root
    overrides = ("stage=sft", f"hardware.gpus_per_node={ranks}", f"output_root={root}")
    return [sys.executable, "-m", "rlhf", *overrides, *more]


def test_workers_follow_a_launcher_that_was_killed_and_its_lock_is_taken_at_once(fake, tmp_path, monkeypatch):
    task = fake()
    launcher = subprocess.Popen(command_line(task), cwd=tmp_path, stdout=subprocess.DEVNULL)
    until(lambda: len(list(task.node.directory.path.glob("here/[01]"))) == 2, 60, "two ranks")
    assert len(living(tmp_path)) == 2
    launcher.kill()
    launcher.wait()
    assert (task.node.directory.path / "lock").exists()
    training, started = Training(monkeypatch), time.monotonic()
    assert states(run_here([task], QUIET)) == {task.key: "done"} and training.started == [task.key]
    assert time.monotonic() - started < 1
    until(lambda: not living(tmp_path), 3, "workers that nobody started")


# --- a real stage ----------------------------------------------------------------------------------------------------

LONG = (
    "model.num_hidden_layers=1", "data.demo.demonstrations=120", "data.demo.rounds=1", "data.demo.heldout_prompts=16",
    "sft.epochs=100000", "launcher.threads=1",
)  # fmt: skip


@pytest.fixture
def real(make_config, tmp_path, request):
    """`real(ranks)`: a launcher that trains a long stage, as soon as three steps are done, and the stage."""
    launchers = []

    def start(ranks):
        config = make_config("stage=sft", f"hardware.gpus_per_node={ranks}", *LONG)
        config.output_root = str(tmp_path)
        (node,) = build_graph(config)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        command, pipe = command_line(SimpleNamespace(config=config), *LONG), subprocess.PIPE
        launcher = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        launchers.append(launcher)
        since = time.time()

        def fresh():
            lines = node.directory.metrics_file.read_text().splitlines() if node.directory.metrics_file.exists() else []
            return sum('"time"' in line and line.endswith("}") and json.loads(line)["time"] > since for line in lines) > 2

        until(lambda: launcher.poll() is not None or fresh(), 120, "three steps")
        assert launcher.poll() is None, launcher.communicate()
        return launcher, node.directory

    yield start
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.kill()
            launcher.wait()
    until(lambda: not living(tmp_path) and not servers(tmp_path), 5, "workers that nobody started")


def saved(directory):
    return sorted(place.parent.name for place in directory.path.glob("checkpoints/step-*/manifest.json"))


def stops(launcher, directory, number, place):
    """Ask a launcher to stop: it saves and leaves nothing behind, within seconds."""
    asked = time.monotonic()
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert launcher.returncode == 130 and "Traceback" not in err, err
    newest = saved(directory)[-1]
    assert f"saved as {newest}; the same command goes on from there" in out
    status = directory.status()
    assert (status["state"], status["reason"]) == ("stopped", f"saved as {newest}")
    assert living(place) == [] and not (directory.path / "lock").exists()


@pytest.mark.parametrize(("ranks", "number"), [(2, signal.SIGINT), pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stage_that_is_asked_to_stop_saves_and_leaves_nothing_behind(real, tmp_path, ranks, number):
    launcher, directory = real(ranks)
    assert len(living(tmp_path)) == (2 if ranks == 2 else 0)  # one rank trains in the launcher itself
    stops(launcher, directory, number, tmp_path)


@pytest.mark.slow
def test_a_stage_whose_worker_or_launcher_is_killed_can_go_on(real, tmp_path):
    launcher, directory = real(2)
    os.kill(max(living(tmp_path)), signal.SIGKILL)
    killed = time.monotonic()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and time.monotonic() - killed < 10
    assert "rank 1 failed: it was ended by SIGKILL (out of memory?)" in err.splitlines()[-1] and living(tmp_path) == []
    assert directory.status()["state"] == "failed"

    launcher, directory = real(2)
    launcher.kill()
    launcher.wait()
    until(lambda: not living(tmp_path), 3, "workers that nobody started")
    assert (directory.path / "lock").exists()

    launcher, directory = real(2)
    assert directory.status()["attempts"] == 3
    stops(launcher, directory, signal.SIGINT, tmp_path)
