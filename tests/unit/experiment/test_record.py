"""What a point leaves beside its stages, and what is taken away again of one that was not run."""

import json
import os
import shutil

import pytest
from omegaconf import OmegaConf

from rlhf.experiment.graph import build_graph
from rlhf.experiment.record import write_record
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.sweep import Outcome, Point

KINDS = ("sft", "reward", "ppo")


@pytest.fixture
def point(make_config, tmp_path):
    config = make_config("seed=3")
    config.output_root = str(tmp_path / "outputs")
    return Point(config, ["seed=3"], tmp_path / "outputs" / "sweeps" / "rlhf" / "seed=3", True, build_graph(config))


def finish(node, **metrics):
    node.directory.finish(Result(node.stage, node.fingerprint, 1.0, metrics))


def recorded(point, *states, **fields):
    """summary.json after these states of sft, reward and ppo; None for a stage without an outcome."""
    found = zip(point.stages, states, strict=True)
    write_record(point, {node.fingerprint: Outcome(state, **fields) for node, state in found if state is not None})
    return json.loads((point.directory / "summary.json").read_text())


def test_a_planned_point_says_what_it_will_be(point, tmp_path):
    summary = recorded(point, None, None, None)
    assert summary["point"] == "seed=3" and summary["overrides"] == ["seed=3"] and summary["state"] == "planned"
    assert list(summary["stages"]) == list(KINDS)
    for node in point.stages:
        assert summary["stages"][node.stage] == {
            "directory": str(node.directory.path), "state": "planned", "reused": False, "reason": None, "log": None,
            "metrics": {},
        }  # fmt: skip
    assert OmegaConf.load(point.directory / "config.yaml").seed == 3
    assert not (tmp_path / "outputs" / "stages").exists()  # links dangle until a stage starts


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (("done", "done", "done"), "done"),
        (("reused", "reused", "done"), "done"),
        (("done", "failed", "skipped"), "failed"),
        (("reused", "reused", "skipped"), "skipped"),
        (("done", "stopped", "skipped"), "skipped"),
        (("done", "stopped", "stopped"), "stopped"),
        (("reused", "queued", "queued"), "queued"),
        (("done", "queued", None), "queued"),
        (("done", None, None), "planned"),
    ],
)
def test_a_point_is_as_its_worst_stage_is(point, states, state):
    for node, found in zip(point.stages, states, strict=True):
        if found in ("done", "reused"):
            finish(node, **{f"eval/{node.stage}": 2.0})
    summary = recorded(point, *states)
    assert summary["state"] == state
    for (kind, entry), found in zip(summary["stages"].items(), states, strict=True):
        good = found in ("done", "reused")
        assert entry["state"] == ("done" if good else found or "planned")
        assert entry["reused"] == (found == "reused")
        assert entry["metrics"] == ({f"eval/{kind}": 2.0} if good else {})


def test_a_failure_keeps_its_reason_and_its_log(point, tmp_path):
    entry = recorded(point, "failed", None, None, reason="out of memory", log=tmp_path / "rank-1.log")["stages"]["sft"]
    assert (entry["reason"], entry["log"]) == ("out of memory", str(tmp_path / "rank-1.log"))


def test_links_are_relative_and_survive_a_move(point, tmp_path):
    recorded(point, None, None, None)
    recorded(point, None, None, None)  # a second time changes nothing
    for node in point.stages:
        link = point.directory / "stages" / node.directory.path.name
        assert link.is_symlink() and not os.path.isabs(os.readlink(link))
        finish(node)
        assert link.resolve() == node.directory.path.resolve()
    shutil.move(tmp_path / "outputs", tmp_path / "elsewhere")
    places = list((tmp_path / "elsewhere" / "sweeps" / "rlhf" / "seed=3" / "stages").iterdir())
    assert sorted(place.name.split("-")[0] for place in places) == sorted(KINDS)
    assert all((place / "result.json").is_file() for place in places)


def test_a_point_that_became_another_one_links_its_own_stages_alone(point, make_config):
    """The same name with other fixed values: `-m seed=1,2` and then `-m seed=1,2 ppo.kl_coef=0.4`."""
    recorded(point, None, None, None)
    config = make_config("seed=3", "ppo.kl_coef=0.4")
    config.output_root = point.config.output_root
    write_record(Point(config, ["seed=3", "ppo.kl_coef=0.4"], point.directory, True, build_graph(config)), {})
    links = {place.name for place in (point.directory / "stages").iterdir()}
    assert links == {node.directory.path.name for node in build_graph(config)}
