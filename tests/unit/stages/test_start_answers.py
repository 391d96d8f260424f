"""Answers of the policy that training starts from: when they are another stage's, and when they are given anew."""

import json
import shutil

import pytest

from rlhf.evaluation.heldout import Answer
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import build_spec
from rlhf.experiment.stage_directory import Result, StageDirectory
from rlhf.stages.start_answers import give_once, identify_answers

ANSWERS = [Answer("ask", "say", 0.1 + 0.2, None, -0.0, 3, 1e-300, None, True, {"model": 1 / 3})]


@pytest.fixture
def make_spec(make_config, models, tmp_path):
    """`make_spec(*overrides)`: PPO of two finished stages."""
    paths = [StageDirectory(tmp_path / name) for name in ("sft-1", "reward-1")]
    for stage, model in zip(paths, models, strict=True):
        shutil.copytree(model, stage.model)
        stage.finish(Result(stage.path.name.split("-")[0], stage.path.name * 2, 1.0, {}))

    def make(*overrides):
        inputs = f"ppo.actor={paths[0].path}", f"ppo.reward={paths[1].model}"
        config = make_config("stage=ppo", *inputs, f"output_root={tmp_path / 'outputs'}", *overrides)
        (node,) = build_graph(config)
        return build_spec(node, config)

    return make


def test_points_that_learn_in_another_way_share_answers_to_the_bit(make_spec):
    first = give_once(make_spec("ppo.kl_coef=0.1"), "prompts-1", lambda: ANSWERS)
    again = give_once(make_spec("ppo.kl_coef=0.2", "ppo.epochs=2"), "prompts-1", lambda: pytest.fail("given twice"))
    assert first == again == ANSWERS


@pytest.mark.parametrize(
    "overrides",
    [("seed=7",), ("rollout.temperature=0.7",), ("rollout.top_k=5",), ("precision=bf16",), ("gold=length",),
     ("data.max_prompt_tokens=20",), ("rewards.model.weight=2",)],
)  # fmt: skip
def test_answers_that_would_be_others_are_given_anew(make_spec, overrides):
    assert identify_answers(make_spec(), "prompts-1") != identify_answers(make_spec(*overrides), "prompts-1")
    assert identify_answers(make_spec(), "prompts-1") != identify_answers(make_spec(), "prompts-2")


def test_a_model_that_was_trained_anew_answers_anew(make_spec, tmp_path):
    before = identify_answers(make_spec(), "prompts-1")
    manifest = tmp_path / "sft-1" / "manifest.json"
    assert str(json.loads(manifest.read_text())["files"]["model/model.safetensors"][-1]) in json.dumps(before["models"])


@pytest.mark.parametrize(
    "overrides", [("gold=my.module:score",), ("+rewards.mine.kind=function", "+rewards.mine.function=length")]
)
def test_what_may_judge_otherwise_next_time_is_not_kept(make_spec, monkeypatch, overrides):
    monkeypatch.setattr("rlhf.experiment.fingerprint.hash_source", lambda path, key: "source")
    assert identify_answers(make_spec(*overrides), "prompts-1") is None
