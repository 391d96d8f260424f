"""Rewards are a mapping: names are added and dropped on the command line, checked, and in the fingerprint."""

from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf.config.derive import roles, used_models
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import reward_seed, reward_terms
from rlhf.experiment.files import parse_json
from rlhf.experiment.fingerprint import check_data_files, data_files, fingerprint, result_config
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import build_spec, load_spec, write_json
from rlhf.experiment.sweep import Point, build_task_graph

MINE = "rewards.mine.kind=function", "rewards.mine.function=length"


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A file of functions, named from where the command is typed."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def score(prompts, responses, records):\n    return [1.0 for _ in responses]\n")
    return "rewards.mine.kind=function", "rewards.mine.function=mine.py:score"


def stages(config):
    return [node.stage for node in build_graph(config)]


def test_a_reward_is_added_without_a_plus_and_has_the_neutral_value_of_what_is_left_out(load_config):
    config = load_config(*MINE, "rewards.mine.weight=0.5", "rewards.mine.options.target=40")
    terms = reward_terms(config)
    assert list(terms) == ["mine", "model"] and terms["model"].kind == "model"
    assert (terms["mine"].weight, terms["mine"].normalize, terms["mine"].options) == (0.5, "none", {"target": 40})
    assert stages(config) == ["sft", "reward", "ppo"]


def test_without_the_reward_model_there_is_no_reward_stage_and_no_reward_model_in_memory(load_config):
    config = load_config(*MINE, "~rewards.model")
    assert stages(config) == ["sft", "ppo"] and list(reward_terms(config)) == ["mine"]
    assert config.ppo.critic == "actor" and "reward" not in build_graph(config)[-1].inputs
    assert [key for key, _ in used_models(config)] == ["model"] and len(roles(config, "ppo")) == 3
    assert len(roles(load_config(), "ppo")) == 4


def test_a_reward_by_path_is_one_more_model(tmp_path, load_config):
    config = load_config("rewards.big.kind=model", "rewards.big.path=org/big")
    node = build_graph(config)[-1]
    assert node.inputs["reward big"] == "org/big" and len(roles(config, "ppo")) == 5
    assert fingerprint(config, "ppo", {}) != fingerprint(load_config(), "ppo", {})


def test_an_ensemble_is_several_reward_stages_that_share_the_data(load_config):
    config = load_config("rewards=ensemble", "rewards.model.members=3")
    nodes = build_graph(config)
    assert [node.name for node in nodes] == ["sft", "reward", "reward-1", "reward-2", "ppo"]
    assert len({node.fingerprint for node in nodes}) == 5 and len(roles(config, "ppo")) == 6
    assert nodes[1].fingerprint == build_graph(load_config())[1].fingerprint
    alone = load_config("stage=reward", "reward.member=2")
    assert build_graph(alone)[0].fingerprint == nodes[3].fingerprint
    assert nodes[-1].parents == tuple(node.fingerprint for node in nodes[:-1])
    tasks = build_task_graph([Point(config, [], Path(), False, nodes)])
    assert [task.config.reward.member for task in tasks if task.node.stage == "reward"] == [0, 1, 2]
    assert [reward_seed(task.config) == config.seed for task in tasks] == [True, True, False, False, True]


def test_the_source_of_a_function_is_in_the_fingerprint_and_not_its_path(function, load_config):
    config = load_config(*function)
    before, files = fingerprint(config, "ppo", {}), data_files(config, "ppo")
    assert list(files) == ["rewards.mine.function"]
    check_data_files(config, files)
    Path("elsewhere").mkdir()
    Path("elsewhere/mine.py").write_text(Path("mine.py").read_text())
    moved = load_config(function[0], "rewards.mine.function=elsewhere/mine.py:score")
    assert fingerprint(moved, "ppo", {}) == before
    Path("mine.py").write_text(Path("mine.py").read_text().replace("1.0", "2.0"))
    assert fingerprint(config, "ppo", {}) != before
    with pytest.raises(ConfigError, match=r"rewards.mine.function=mine.py:score: it has changed since"):
        check_data_files(config, files)


def test_a_time_limit_is_not_in_the_fingerprint_and_other_stages_read_no_rewards(load_config):
    config, other = load_config(*MINE), load_config(*MINE, "rewards.mine.timeout_s=5")
    assert fingerprint(config, "ppo", {}) == fingerprint(other, "ppo", {})
    assert {key for key in result_config(config, "ppo") if key.startswith("rewards")} == {
        "rewards.mine.kind", "rewards.mine.function",
    }  # fmt: skip
    assert not [key for key in result_config(config, "reward") if key.startswith(("rewards", "gold"))]


def test_a_spec_holds_the_rewards(tmp_path, load_config):
    config = load_config(*MINE, f"output_root={tmp_path}")
    spec = build_spec(build_graph(config)[-1], config)
    write_json(tmp_path / "spec.json", asdict(spec))
    assert reward_terms(load_spec(parse_json((tmp_path / "spec.json").read_text())).config) == reward_terms(config)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("rewards.my-reward.kind=function",), "rewards.my-reward=...: this cannot be the name of a reward; write it with"),
        (("rewards.mine.weight=1",), r"rewards.mine.kind=\?\?\?: it has no default; give it: rewards.mine.kind=..."),
        (("rewards.mine.kind=functoin",), "rewards.mine.kind=functoin: there is no such choice; choose one of model, e"),
        (("rewards.mine.kind=function",), "rewards.mine.function=null: it names no function; name a built-in one, length"),
        ((*MINE, "rewards.mine.wieght=1"), "rewards.mine.wieght=1: there is no such key"),
        ((*MINE, "rewards.mine.path=x"), "rewards.mine.path=x: a reward of kind function does not read it; leave it out"),
        (("rewards.model.members=3",), "rewards.model.members=3: a reward of kind model does not read it; leave"),
        (("rewards.model.timeout_s=9",), "timeout_s=9.0: a reward of kind model does not .*kind=function or http"),
        (("rewards=ensemble-min", "rewards.model.std_coef=2"), "std_coef=2.0: combine=min does not read it; set rewards"),
        ((MINE[0], "rewards.mine.function=lenght"), "function=lenght: there is no such function; name a built-in one"),
        ((MINE[0], "rewards.mine.function=no.py:score"), "function=no.py:score: there is no such file; give its path"),
        ((MINE[0], "rewards.mine.function=no.such:score"), "function=no.such:score: it cannot be imported"),
        ((MINE[0], "rewards.mine.function=format"), "rewards.mine.options=None: missing a required argument: 'pattern'"),
        ((*MINE, "rewards.mine.options.goal=1"), "unexpected keyword argument 'goal'; it takes target, as rewards.mine"),
        (("~rewards.model",), "rewards={}: there is no reward that a policy could be trained on; add one"),
        (("gold=model",), "gold=model: that is the reward stage's model, which is trained"),
        (("gold=no_such",), "gold=no_such: there is no such function; name a built-in one"),
        (("rewards.other.kind=model",), "rewards.other.path=null: the reward stage's model is a reward already; give a"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(words, told, load_config):
    with pytest.raises(ConfigError, match=told) as raised:
        build_graph(load_config(*words))
    assert "\n" not in str(raised.value)


def test_a_function_whose_package_is_missing_is_refused(monkeypatch, load_config):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"function=math: it needs the package math-verify.*; pip install 'rlhf\["):
        load_config(MINE[0], "rewards.mine.function=math")
