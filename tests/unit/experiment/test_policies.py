"""Which policy a path means, and what is known of it."""

import json
import shutil

import pytest

from rlhf.config.errors import ConfigError
from rlhf.experiment.policies import find_policy, find_start, with_saved_keys


def write_stage(root, name, inputs=None, model=None, done=True):
    """A stage's directory, as far as it is read here; returns its model's."""
    directory = root / "stages" / name
    (directory / "model").mkdir(parents=True)
    config = {"model": {"path": model}, "rollout": {"temperature": 0.5, "max_new_tokens": 7, "gone": 1}, "rewards": {}}
    (directory / "spec.json").write_text(json.dumps({"inputs": inputs or {}, "config": config}))
    (directory / "status.json").write_text(json.dumps({"state": "running"}))
    if done:
        result = {"stage": name.split("-")[0], "fingerprint": name, "seconds": 1.0, "metrics": {}}
        (directory / "result.json").write_text(json.dumps(result))
    return str(directory / "model")


def write_run(root, name, *stages):
    """A run's directory with its links."""
    run, known = root / "runs" / name, {stage.split("-")[0]: stage for stage in stages}
    (run / "stages").mkdir(parents=True)
    for stage in stages:
        (run / "stages" / stage).symlink_to(f"../../../stages/{stage}")
    entries = {kind: {"directory": str(root / "stages" / stage)} for kind, stage in known.items()}
    (run / "summary.json").write_text(json.dumps({"point": name, "overrides": [], "state": "done", "stages": entries}))
    return str(run)


@pytest.fixture
def root(tmp_path):
    """Outputs of a PPO run, of a DPO run, and of one that is not done."""
    outputs = tmp_path / "outputs"
    sft, reward = write_stage(outputs, "sft-1", model="org/base"), write_stage(outputs, "reward-1")
    write_stage(outputs, "ppo-1", {"actor": sft, "reward": reward})
    write_stage(outputs, "dpo-1", {"policy": sft})
    write_stage(outputs, "ppo-2", {"actor": sft}, done=False)
    write_run(outputs, "ppo", "sft-1", "reward-1", "ppo-1")
    write_run(outputs, "dpo", "sft-1", "reward-1", "dpo-1")
    write_run(outputs, "unfinished", "sft-1", "ppo-2")
    write_run(outputs, "reward", "reward-1")
    return outputs


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_is_its_last_policy_wherever_the_outputs_are(root, moved):
    if moved:
        root = root.rename(root.parent / "elsewhere")
    policy = find_policy(str(root / "runs" / "ppo"), "chat")
    assert (policy.name, policy.path) == ("ppo", str(root / "stages" / "ppo-1" / "model"))
    assert policy.rewards == {"reward": str(root / "stages" / "reward-1" / "model")}
    assert find_start(policy, "sft", "--beside").path == str(root / "stages" / "sft-1" / "model")
    assert (base := find_start(policy, "base", "--beside")).path == "org/base" and base.name == "base"
    dpo = find_policy(str(root / "runs" / "dpo"), "chat")  # which was trained without the reward model of its run
    assert (dpo.name, dpo.rewards) == ("dpo", policy.rewards)


def test_a_stage_its_model_and_any_other_model_are_policies_too(root, tmp_path):
    stage = root / "stages" / "sft-1"
    for given in (stage, stage / "model"):
        assert find_policy(str(given), "chat").path == str(stage / "model")
    shutil.copytree(stage / "model", tmp_path / "mine")
    mine = find_policy(str(tmp_path / "mine"), "chat")
    assert (mine.name, mine.stage, mine.spec) == ("mine", None, {})
    assert find_policy("org/name", "chat").path == "org/name"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("stages/reward-1", "the stage reward makes no language model"),
        ("runs/reward", r"none of its stages \(reward\) makes a language model"),
        ("runs/unfinished", r"ppo-2 is not done \(.*\); run it to its end first"),
        ("runs", "it holds 4 runs or points; give one of its points, as .*runs/dpo"),
    ],
)
def test_what_is_no_policy_is_told(root, given, problem):
    with pytest.raises(ConfigError, match=problem):
        find_policy(str(root / given), "chat")


def test_a_model_of_random_weights_has_no_base(root):
    policy = find_policy(write_stage(root, "sft-2"), "chat")
    with pytest.raises(ConfigError, match="sft-2 started from random weights; give its path, as --beside=DIR"):
        find_start(policy, "base", "--beside")
    with pytest.raises(ConfigError, match="no stage of this program made org/name"):
        find_start(find_policy("org/name", "chat"), "sft", "--beside")


def test_what_is_typed_wins_over_what_a_stage_was_run_with(root, make_config):
    spec = find_policy(str(root / "stages" / "sft-1"), "chat").spec
    found = with_saved_keys(make_config("rollout.temperature=0.9"), spec, "rollout", {"rollout.temperature"}).rollout
    assert (found.temperature, found.max_new_tokens, found.do_sample) == (0.9, 7, True)
