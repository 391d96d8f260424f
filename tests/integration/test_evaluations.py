"""Evaluations as stages: one that is killed ends as the one that was left alone, and two ranks find what one finds."""

import json
import shutil

import pytest
from support.crash_server import CrashServer, FaultPoint
from support.ranks import run_specs

from rlhf.cli.evaluate import main
from rlhf.evaluation.answers import read_answers, read_rows
from rlhf.evaluation.reward.result import FILE, read_diagnoses
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.models.load import new_policy, new_scorer
from rlhf.stages.evaluate_reward.run import SCORES

pytestmark = pytest.mark.slow

SMALL = ("data.demo.heldout_prompts=7", "data.demo.demonstrations=20", "rollout.max_new_tokens=6")
# Of each stage: its keys, the calls that keep a part of its work, and what it leaves.
STAGES = {
    "evaluate": (
        ("evaluate.batch_size=2", "evaluate.samples=2", "gold=length", "rewards.model.path={scorer}"),
        "rlhf.stages.evaluate.run:add_answers",
        read_answers,
    ),
    "evaluate_reward": (
        ("evaluate_reward.tokens_per_pass=80", "evaluate_reward.probes=7"),
        "rlhf.stages.evaluate_reward.run:write_rows",
        lambda directory: [*read_rows(directory / SCORES), json.loads((directory / FILE).read_text())],
    ),
}


@pytest.fixture(scope="module")
def models(make_config, tokenizer, tmp_path_factory):
    """A policy and a reward model with random weights, by name."""
    config, root = make_config(), tmp_path_factory.mktemp("models")
    found = {"policy": new_policy(config.model, config, tokenizer, config.zero, 0.0)}
    found["scorer"] = new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0).classifier
    for name, model in found.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in found}


@pytest.fixture(scope="module")
def make_spec(make_config, models, tmp_path_factory):
    """`make_spec(stage, ...)` freezes an evaluation in an empty directory; returns its spec and that directory."""

    def make(stage, *changes):
        own = [key.format(**models) for key in STAGES[stage][0]]
        named = [f"evaluate.policy={models['policy']}", f"evaluate_reward.model={models['scorer']}"]
        root = f"output_root={tmp_path_factory.mktemp(stage)}"
        config = make_config(f"stages=[{stage}]", *SMALL, *own, *named, root, *changes)
        (node,) = build_graph(config)
        return write_spec(node, config).file, node.directory

    return make


@pytest.fixture(scope="module")
def server():
    """What runs stages and kills them."""
    server = CrashServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def unbroken(make_spec, server):
    """`unbroken(stage)`: the directory of an evaluation that nothing broke."""
    known = {}

    def run(stage):
        if stage not in known:
            spec, known[stage] = make_spec(stage)
            assert server.run(spec).codes == [0]
        return known[stage]

    return run


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_killed_evaluation_ends_as_an_unbroken_one(stage, make_spec, server, unbroken):
    _, keeps, read = STAGES[stage]
    spec, directory = make_spec(stage)
    for fault in (FaultPoint(keeps, nth=3), FaultPoint(keeps, nth=2, when="after")):
        assert server.run(spec, 1, fault).codes == [-9]
    ended = server.run(spec)
    assert ended.codes == [0] and f"resumed {stage}" in ended.said
    assert read(directory.path) == read(unbroken(stage).path)
    assert directory.result().metrics == unbroken(stage).result().metrics


@pytest.mark.parametrize("stage", list(STAGES))
def test_two_ranks_evaluate_as_one(stage, make_spec, unbroken):
    spec, directory = make_spec(stage, "hardware.gpus_per_node=2")
    run_specs([spec], world=2)
    one = unbroken(stage)
    assert directory.page.is_file() and one.page.is_file()
    assert directory.result().metrics == pytest.approx(one.result().metrics, rel=1e-4, abs=1e-5)
    if stage == "evaluate":
        first, second = read_answers(one.path), read_answers(directory.path)
        assert [row["response"] for row in second] == [row["response"] for row in first] and len(first) == 14
    else:
        assert list(read_diagnoses(directory.path).diagnoses) == list(read_diagnoses(one.path).models) == ["scorer"]


def test_a_plan_tells_the_calls_of_a_judge(models, tmp_path, capsys, monkeypatch):
    shutil.copytree(models["policy"], tmp_path / "tuned")
    (tmp_path / "tuned/note").write_text("another one")
    command = [models["policy"], str(tmp_path / "tuned"), f"ppo.reward={models['scorer']}", *SMALL, "evaluate.samples=2"]
    command += ["evaluate.judge.url=http://127.0.0.1:9/v1", "evaluate.judge.model=m", f"output_root={tmp_path / 'out'}"]
    command += ["evaluate.judge.price_read=1", "evaluate.judge.price_written=2", "dry_run=true"]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "│ 28 calls │" in said and "judge: 28 calls of m at most" in said  # 7 prompts, 2 answers, 2 orders
    assert max(map(len, said.splitlines()[:8])) <= 80 and not (tmp_path / "out").exists()
    assert main([*command, "evaluate.judge.max_calls=27"]) == 2
    assert "it would take 28 calls" in capsys.readouterr().err
    assert main([*command, "plan.max_dollars=0.001"]) == 2
    assert "the plan costs $0.02" in capsys.readouterr().err
