import json

import pytest
from support.wandb_files import history, records

from rlhf.experiment.graph import build_graph
from rlhf.experiment.sweep import Outcome, Point, build_task_graph
from rlhf.tracking.wandb import default_mode, log_sweep, run_id


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_offline_without_a_login():
    assert default_mode() == "offline"


def test_online_with_a_key_or_a_login(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert default_mode() == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert default_mode() == "online"


def test_what_wandb_itself_was_told_wins(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert default_mode() == "disabled"


def test_the_run_of_a_sweep_holds_its_plan_and_links_points_to_the_stages_they_share(make_config, tmp_path):
    points = []
    for coefficient in (0.1, 0.2):
        config = make_config(f"ppo.kl_coef={coefficient}", "tracking=wandb", "name=kl", f"output_root={tmp_path}")
        place = tmp_path / "sweeps" / "kl" / f"ppo.kl_coef={coefficient}"
        place.mkdir(parents=True)
        points.append(Point(config, [], place, True, build_graph(config)))
    tasks = build_task_graph(points)
    for _ in range(2):  # typed again: the same run
        log_sweep(points, tasks, {task.key: Outcome("queued") for task in tasks})
    (file,) = (tmp_path / "sweeps" / "kl" / "wandb").glob("offline-run-*/run-*.wandb")
    assert history(file)["_step"] == [0]
    runs = [record.run for record in records(file) if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1 and {run.run_group for run in runs} == {"kl"}
    assert {run.job_type for run in runs} == {"sweep"}
    tables = {}
    for table in file.parent.glob("files/media/table/*.table.json"):
        tables[table.name.split("_")[0]] = json.loads(table.read_text())
    assert {"plan", "points"} == set(tables)
    assert [row[0].split("-")[0] for row in tables["plan"]["data"]] == ["sft", "reward", "ppo", "ppo"]
    assert [row[3].count("kl_coef") for row in tables["plan"]["data"]] == [2, 2, 1, 1]
    rows = tables["points"]["data"]
    assert rows[0][1] == rows[1][1] == run_id(tasks[0].key) and rows[0][3] != rows[1][3]
