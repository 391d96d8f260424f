"""spec.json says what runs: what a configuration leaves open is filled in before it is written."""

import json

import pytest

from rlhf.experiment.graph import build_graph
from rlhf.experiment.resolve import resolve_for_stage
from rlhf.experiment.spec import read_spec, write_spec
from rlhf.experiment.stage_directory import Result


@pytest.fixture
def config(make_config, tmp_path):
    return make_config(f"output_root={tmp_path}")


def frozen(config, stage):
    """The spec that a worker reads of a stage."""
    (node,) = (node for node in build_graph(config) if node.stage == stage)
    return read_spec(write_spec(node, config).file)


@pytest.mark.parametrize(("normalize", "mode"), [("none", "subtract"), ("bias", "subtract"), ("standard", "replace")])
def test_the_penalty_follows_what_the_scores_are(config, normalize, mode):
    config.reward.normalize = normalize
    assert frozen(config, "ppo").config.ppo.eos_penalty_mode == mode
    for typed in ("replace", "subtract"):
        config.ppo.eos_penalty_mode = typed
        assert frozen(config, "ppo").config.ppo.eos_penalty_mode == typed


def test_the_result_of_a_mode_is_the_same_whether_it_was_typed_or_followed(config):
    followed = build_graph(config)[2].fingerprint
    config.ppo.eos_penalty_mode = "subtract"
    assert build_graph(config)[2].fingerprint == followed
    config.ppo.eos_penalty_mode = "replace"
    assert build_graph(config)[2].fingerprint != followed


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ('{"reward_bias": 0.3, "reward_scale": 2.0}', "replace"),
        ('{"reward_bias": 0.3, "reward_scale": 1.0}', "subtract"),
        ('{"reward_bias": 0.3}', "subtract"),
        ("{", "subtract"),
        (None, "subtract"),
    ],
)
@pytest.mark.parametrize("of_stage", [True, False])
def test_of_a_reward_model_given_by_path_its_own_file_tells(config, tmp_path, settings, mode, of_stage):
    """Whatever reward.normalize says: it is not about that model."""
    config.reward.normalize = "none" if mode == "replace" else "standard"
    place = tmp_path / "reward"
    (place / "model").mkdir(parents=True)
    if of_stage:
        (place / "result.json").write_text(json.dumps({"fingerprint": "f"}))
    if settings is not None:
        (place / "model" / "config.json").write_text(settings)
    config.ppo.reward = str(place if of_stage else place / "model")
    config.stages = ["sft", "ppo"]
    assert frozen(config, "ppo").config.ppo.eos_penalty_mode == mode


def test_the_critic_in_the_spec_is_the_one_that_runs(config):
    """As `ppo.critic=outputs/stages/reward-0123456789ab`: its model/ is what is loaded."""
    reward = build_graph(config)[1]
    reward.directory.finish(Result("reward", reward.fingerprint, 1.0, {}))
    config.ppo.critic = str(reward.directory.path)
    spec = frozen(config, "ppo")
    assert spec.config.ppo.critic == spec.inputs["critic"] == str(reward.directory.model)
    assert resolve_for_stage(spec.config, "ppo", spec.inputs) == spec.config  # nothing is left open


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_other_stages_run_what_was_composed(config, stage):
    config.data.template = "plain"  # which `auto` is for a tokenizer that is trained here
    assert frozen(config, stage).config == config
