"""Trackers beside metrics.jsonl hold each step once, however often a stage was killed and resumed."""

import json
import os
import signal
from dataclasses import replace

import pytest
from support.wandb_files import history, records

from rlhf.experiment.spec import Spec, stage_directory
from rlhf.tracking.tracker import Tracker


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def spec(make_config, tmp_path):
    """`spec(*overrides)`: a stage to be tracked."""

    def make(*overrides):
        config = make_config(*overrides)
        return Spec("ppo", "f" * 64, str(tmp_path / "outputs" / "stages" / "ppo-ffffffffffff"), {}, config, "", [])

    return make


def attempt(spec, start, end, checkpoint=None, kill=True):
    """An attempt that resumes at `start`, whose checkpoint `start` is, and logs steps up to `end`; its own checkpoint
    follows step `checkpoint`. Killed at its end, unless it may finish."""
    pid = os.fork()
    if pid == 0:
        try:
            run_attempt(spec, start, end, checkpoint, kill)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL if kill else os.WEXITSTATUS(status) == 0


def run_attempt(spec, start, end, checkpoint, kill):
    tracker = Tracker(spec, True)
    saved = stage_directory(spec).path / f"saved-{start}"
    tracker.resume(saved if saved.exists() else None, start, 0.0)
    for step in range(start + 1, end + 1):
        if step % 5 == 0:
            tracker.samples(step, [{"prompt": "p", "sft": "a", "ppo": f"answer {step}"}])
        tracker.log(step, {"reward/mean": step / 2, "kl/sequence": float("nan") if step == 3 else 1.0})
        if step == checkpoint:
            (stage_directory(spec).path / f"saved-{step}").mkdir()
            tracker.save(stage_directory(spec).path / f"saved-{step}")
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    tracker.close(0, {"eval/gold": 1.5})
    os._exit(0)


@pytest.mark.parametrize(
    ("asked", "total", "stops"), [("unended", 40, True), ("kl_acceleration", 40, False), ("unended", 5, False)]
)
def test_an_alarm_is_told_when_it_begins_and_stops_a_stage_that_asks_for_it(spec, capsys, asked, total, stops):
    tracker = Tracker(spec(f"health.stop=[{asked}]"), True)
    tracker.status(0, total)
    for step in range(1, 8):
        tracker.log(step, {"length/ended": 0.5})
    assert capsys.readouterr().out.count("alarm unended at step 5: responses that did not end") == 1
    assert tracker.directory.status()["alarms"] == "unended at step 5"
    assert (tracker.stop_reason is not None) == stops
    tracker.resume(None, 0, 0.0)
    assert (tracker.directory.status()["alarms"], tracker.stop_reason) == (None, None)
    tracker.close(0)


LIVES = ((0, 16, 10), (10, 18, None), (10, 30, None))


@pytest.fixture
def lives():
    """`lives(spec)`: two attempts that are killed, the second without a checkpoint of its own, and one that ends."""

    def run(spec):
        for start, end, checkpoint in LIVES:
            attempt(spec, start, end, checkpoint, kill=end < 30)
        return stage_directory(spec).path

    return run


def test_a_stage_killed_and_resumed_is_one_offline_run_with_each_step_once(spec, lives):
    directory = lives(spec("tracking=wandb"))
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (file,) = directory.glob("wandb/*run-*/run-*.wandb")
    found = history(file)
    assert found["_step"] == list(range(1, 31)) == [row["step"] for row in rows]
    assert found["reward/mean"] == [row["reward/mean"] for row in rows]
    assert found["_timestamp"] == pytest.approx([row["time"] for row in rows])
    tables = [
        record.history.step.num
        for record in records(file)
        if any(item.nested_key and item.nested_key[0] == "samples" for item in record.history.item)
    ]
    assert tables == [5, 10, 15, 20, 25, 30]
    texts = [json.loads(table.read_text())["data"] for table in file.parent.glob("files/media/table/*.table.json")]
    assert sorted(text[-1] for (text,) in texts) == sorted(f"answer {step}" for step in tables)


def test_a_stage_killed_and_resumed_has_each_step_once_in_tensorboard(spec, lives):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = lives(spec("tracking=tensorboard"))
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward/mean")] == list(range(1, 31))
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [e.wall_time for e in events.Scalars("kl/sequence")] == pytest.approx([row["time"] for row in rows])
    told = [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("samples/text_summary")]
    assert [step for step, _ in told] == [5, 10, 15, 20, 25, 30]
    assert told[-1][1] == "**prompt**\n\n    p\n\n**sft**\n\n    a\n\n**ppo**\n\n    answer 30"


def test_tensorboard_compares_stages_by_their_keys_and_final_metrics(spec):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    stage = replace(spec("tracking=tensorboard", "ppo.kl_coef=0.3"), swept="kl_coef=0.3")
    attempt(stage, 0, 2, kill=False)
    events = EventAccumulator(str(stage_directory(stage).path / "tensorboard"))
    events.Reload()
    found = parse_session_start_info_plugin_data(events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    keys = {name: getattr(value, value.WhichOneof("kind")) for name, value in found.hparams.items()}
    assert (keys["ppo.kl_coef"], keys["stage"], keys["sweep"], keys["ppo.betas"]) == (
        0.3,
        "ppo",
        "kl_coef=0.3",
        "[0.9, 0.95]",
    )
    assert "sft.learning_rate" not in keys and "tracking.tensorboard" not in keys
    assert [event.value for event in events.Scalars("final/eval/gold")] == [1.5]


def test_a_tracker_that_is_asked_for_later_holds_the_steps_before(spec):
    plain = spec()
    attempt(plain, 0, 8, 8)
    tracked = replace(plain, config=spec("tracking=wandb", "tracking.tensorboard=true").config)
    attempt(tracked, 8, 12, kill=False)
    (file,) = stage_directory(plain).path.glob("wandb/*run-*/run-*.wandb")
    assert history(file)["_step"] == list(range(1, 13))


class Server:
    """W&B's client, online: a run of `known` steps on the server."""

    disabled = offline = False

    def __init__(self, known):
        self.known, self.rows, self.settings, self.url, self.artifacts, self.alerts = known, [], {}, None, [], []

    def init(self, **settings):
        self.settings = settings
        return self

    @property
    def step(self):
        return self.known + 1 if self.settings["resume"] == "allow" and self.known else 0

    def log(self, row, step, commit):
        assert step >= self.step  # else W&B drops it with a warning
        self.rows.append((step, commit))

    def use_artifact(self, name, type):
        raise ValueError(f"no {type} {name}")

    def _log_artifact(self, artifact, aliases, is_user_created, use_after_commit):
        self.artifacts.append(artifact.name)

    def alert(self, title, text, level):
        self.alerts.append((title, text, level))

    def finish(self, exit_code):
        assert exit_code == 0


@pytest.mark.parametrize(
    ("known", "sent"),
    [
        (18, list(range(19, 25))),  # what the server has is not sent again
        (8, list(range(9, 25))),  # what it lacks is, also from before the checkpoint
        (0, list(range(1, 25))),  # the attempts before were offline
    ],
)
def test_online_a_resumed_stage_goes_on_where_the_server_is(spec, monkeypatch, known, sent):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "x")
    plain = spec()
    attempt(plain, 0, 16, 10)
    server = Server(known)
    monkeypatch.setattr(wandb, "init", server.init)
    tracker = Tracker(replace(plain, config=spec("tracking=wandb").config), True)
    tracker.resume(stage_directory(plain).path / "saved-10", 10, 0.0)
    for step in range(11, 25):
        tracker.log(step, {"reward/mean": 1.0})
    tracker.close(0)
    assert [step for step, commit in server.rows if commit] == sent
    assert server.settings["resume"] == "allow"


def test_online_a_stage_that_begins_writes_its_run_anew(spec, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "x")
    server = Server(18)
    monkeypatch.setattr(wandb, "init", server.init)
    tracker = Tracker(spec("tracking=wandb"), True)
    tracker.resume(None, 0, 0.0)
    tracker.log(1, {"reward/mean": 1.0})
    tracker.close(0)
    assert server.settings["resume"] is None
    assert server.rows == [(1, True)]


def test_an_alarm_is_an_alert_of_the_run(spec, monkeypatch):
    import wandb

    server = Server(0)
    monkeypatch.setattr(wandb, "init", server.init)
    tracker = Tracker(spec("tracking=wandb"), True)
    tracker.resume(None, 0, 0.0)
    for step in range(1, 8):
        tracker.log(step, {"length/ended": 0.5})
    tracker.close(0)
    ((title, text, level),) = server.alerts
    assert (title, level) == ("ppo-ffffffffffff: unended", "WARN") and text.startswith("alarm unended at step 5: ")


def test_a_disabled_tracker_can_be_resumed(spec):
    disabled = spec("tracking=wandb", "tracking.wandb.mode=disabled")
    attempt(disabled, 0, 3, 2)
    attempt(disabled, 2, 4, kill=False)
    assert not list(stage_directory(disabled).path.glob("wandb/*run-*"))
