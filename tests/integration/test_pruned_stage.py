"""A stage that a search gives up while it trains, and that is run by itself later."""

import json

import pytest
from support.small import SMALL_STAGES

from rlhf.cli import pruning

optuna = pytest.importorskip("optuna")


def read_lines(stage):
    """The metrics of a stage's steps that do not depend on the machine."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    machine = ("time", "throughput", "memory")
    return [{key: value for key, value in line.items() if key.partition("/")[0] not in machine} for line in lines]


@pytest.mark.slow
def test_a_pruned_point_run_by_itself_ends_as_the_unbroken_one(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "PERIOD_S", 0.01)
    monkeypatch.setattr("rlhf.cli.search.build_pruner", lambda config: optuna.pruners.ThresholdPruner(lower=1e9))
    small = *SMALL_STAGES, "ppo.max_steps=8", "ppo.eval_every=1"
    searched = "-m", "ppo.kl_coef=interval(0.1,0.2)", "sweep.pruner=median", "sweep.trials=1", "name=search"
    code, out, _ = cli(*searched, *small)
    (stage,) = (tmp_path / "outputs" / "stages").glob("ppo-*")
    (point,) = (tmp_path / "outputs" / "sweeps" / "search").glob("*/summary.json")
    assert code == 0 and "pruned ppo: saved as step-" in out and "no trial has a value" in out
    assert json.loads(point.read_text())["state"] == "pruned" and not (stage / "result.json").exists()
    _, said, _ = cli("status", "outputs", "--json")
    assert {entry["name"]: entry["state"] for entry in json.loads(said)}[stage.name] == "pruned"

    code, out, _ = cli(point.parent.name, *small)
    assert code == 0 and "resumed ppo at step-" in out
    code, _, _ = cli(point.parent.name, *small, "output_root=unbroken")
    unbroken = tmp_path / "unbroken" / "stages" / stage.name
    weights = "model/model.safetensors"
    assert code == 0 and (stage / weights).read_bytes() == (unbroken / weights).read_bytes()
    assert len(read_lines(stage)) == 8 and read_lines(stage) == read_lines(unbroken)
