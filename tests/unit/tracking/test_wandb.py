import json
from types import SimpleNamespace

import pytest
from support.wandb_files import history, records

from rlhf.experiment.graph import build_graph
from rlhf.experiment.lineage import read_maker
from rlhf.experiment.spec import build_spec, start_attempt
from rlhf.experiment.sweep import Outcome, Point, build_task_graph
from rlhf.runtime.compat.wandb import use_artifact
from rlhf.tracking.wandb import WandbRun, default_mode, run_id
from rlhf.tracking.wandb_artifacts import describe_output
from rlhf.tracking.wandb_sweep import gather_offline_runs, log_sweep


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


@pytest.fixture
def sweep(make_config, tmp_path):
    """The points of a sweep over a PPO key and the seed, and its stages."""
    points = []
    for coefficient, seed in ((0.1, 1), (0.2, 1), (0.1, 2)):
        words = (f"ppo.kl_coef={coefficient}", f"seed={seed}")
        config = make_config(*words, "tracking=wandb", "name=kl", f"output_root={tmp_path}")
        place = tmp_path / "sweeps" / "kl" / ",".join(words)
        place.mkdir(parents=True)
        points.append(Point(config, list(words), place, True, build_graph(config)))
    return points, build_task_graph(points)


def read_run(directory):
    """The run that was written offline in a directory: its record, its configuration and its artifacts."""
    (file,) = (directory / "wandb").glob("offline-run-*/run-*.wandb")
    run, config, artifacts, summary = None, {}, [], {}
    for record in records(file):
        if record.HasField("run"):
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        if record.HasField("artifact"):
            artifacts.append(record.artifact)
        summary |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
    return run, config, artifacts, summary


def test_stages_are_named_by_what_they_are_and_linked_by_artifacts(sweep):
    _, tasks = sweep
    sft, reward, ppo = (next(t for t in tasks if t.node.stage == kind) for kind in ("sft", "reward", "ppo"))
    for task in (sft, reward, ppo):
        spec = build_spec(task.node, task.config, None, task.swept, task.sweep)
        start_attempt(spec)
        run = None if task is reward else WandbRun(spec, resumed=False)
        task.node.directory.model.mkdir()
        (task.node.directory.model / "config.json").write_text("{}")
        if run is not None:
            run.finish(0, {"eval/gold": 1.5})
    run, config, made, _ = read_run(sft.node.directory.path)
    assert (run.display_name, run.job_type, run.run_group) == ("sft seed=1", "sft", "kl")
    assert config["sft"]["learning_rate"] == sft.config.sft.learning_rate
    assert not {"ppo", "reward", "tracking", "output_root"} & set(config)  # a shared stage has its own keys alone
    run, config, used, summary = read_run(ppo.node.directory.path)
    assert (run.display_name, run.job_type, list(run.tags)) == ("ppo kl_coef=0.1 seed=1", "ppo", ["ppo"])
    assert config["ppo"]["kl_coef"] == 0.1 and summary["eval/gold"] == 1.5
    by_name = {artifact.name: artifact for artifact in used}
    assert {name: a.use_after_commit for name, a in by_name.items()} == {
        "sft": True, "reward": True, "demo": True, "ppo": False,
    }  # fmt: skip
    assert sft.key in by_name["sft"].aliases and ppo.key in by_name["ppo"].aliases
    output = next(artifact for artifact in made if artifact.name == "sft")
    assert not output.use_after_commit and output.digest == by_name["sft"].digest  # one version, made here and used there
    (reference,) = (entry for entry in output.manifest.contents if entry.ref)
    file = sft.node.directory.model / "config.json"
    assert reference.ref == file.as_uri() and not reference.local_path
    (uploaded,) = describe_output(read_maker(str(sft.node.directory.model)), upload=True).manifest.entries.values()
    assert (uploaded.ref, uploaded.local_path) == (None, str(file))  # where log_model asks for it


@pytest.mark.parametrize("is_there", [True, False])
def test_an_artifact_that_the_server_has_is_referred_to_and_stays_what_it_is(is_there):
    used, described = [], []

    def refer(name, type):
        if not is_there:
            raise ValueError("not found")
        used.append((name, type))

    run = SimpleNamespace(offline=False, use_artifact=refer, _log_artifact=lambda artifact, **_: described.append(artifact))
    artifact = SimpleNamespace(name="ppo", type="model")
    use_artifact(run, artifact, "abc")
    assert (used, described) == (([("ppo:abc", "model")], []) if is_there else ([], [artifact]))


def test_the_runs_of_a_sweep_hold_its_configuration_its_plan_and_its_points(sweep, tmp_path):
    points, tasks = sweep
    log_sweep(points, tasks, {task.key: Outcome("queued") for task in tasks})
    place = tmp_path / "sweeps" / "kl"
    run, config, _, _ = read_run(place)
    assert (run.display_name, run.run_group, run.job_type) == ("kl", "kl", "sweep")
    assert config["swept"] == {"ppo": {"kl_coef": ["0.1", "0.2"]}, "seed": ["1", "2"]}
    assert config["sft"]["batch_size"] == points[0].config.sft.batch_size and "seed" not in config
    (file,) = (place / "wandb").glob("offline-run-*/run-*.wandb")
    assert history(file)["_step"] == [0]
    tables = {}
    for table in file.parent.glob("files/media/table/*.table.json"):
        tables[table.name.split("_")[0]] = json.loads(table.read_text())
    assert {"plan", "points"} == set(tables)
    assert [row[0].split("-")[0] for row in tables["plan"]["data"]] == ["sft"] * 2 + ["reward"] * 2 + ["ppo"] * 3
    assert [row[3].count("kl_coef") for row in tables["plan"]["data"]] == [2, 1, 2, 1, 1, 1, 1]
    rows = tables["points"]["data"]
    assert [row[0] for row in rows] == ["kl_coef=0.1 seed=1", "kl_coef=0.2 seed=1", "kl_coef=0.1 seed=2"]
    assert rows[0][1] == rows[1][1] == run_id(tasks[0].key) and rows[0][3] != rows[1][3]
    run, config, _, _ = read_run(points[1].directory)
    assert (run.display_name, run.run_group, run.job_type) == ("point kl_coef=0.2 seed=1", "kl", "point")
    assert config["ppo"]["kl_coef"] == 0.2 and config["runs"]["sft"] == run_id(tasks[0].key)
    for _ in range(2):
        directory, number = gather_offline_runs(points)
        assert (directory, number) == (place / "wandb", 4)  # the sweep's and its points'; no stage has run
        assert all((link / f"run-{link.name.split('-')[-1]}.wandb").is_file() for link in directory.glob("offline-run-*"))
