"""The stage evaluate_reward before anything runs: which models it reads, what tells evaluations apart, what they take."""

import pytest

from rlhf.catalog.stage import kind_of
from rlhf.cli.prepare import resolve_config
from rlhf.experiment.fingerprint import fingerprint
from rlhf.experiment.graph import build_graph
from rlhf.planner.auto import choose_layout
from rlhf.planner.plan import plan_stage

NAME = "evaluate_reward"


@pytest.fixture
def config(make_config):
    """The evaluation of the reward model of a run."""
    return make_config("stages=[reward,evaluate_reward]", "gold=length")


def test_all_members_of_an_ensemble_are_evaluated_together(make_config, config):
    assert [node.name for node in build_graph(config)] == ["reward", NAME]
    ensemble = build_graph(make_config("stages=[reward,evaluate_reward]", "rewards=ensemble", "gold=length"))
    members, own = [node for node in ensemble if node.stage == "reward"], ensemble[-1]
    assert len(members) > 1 and set(own.parents) == {node.fingerprint for node in members}
    assert len(kind_of(NAME).roles(make_config("rewards=ensemble"))) == len(members)


def test_the_reward_model_of_a_run_without_it_among_its_rewards_is_trained_to_be_evaluated(make_config):
    without = make_config("stages=[sft,reward,ppo]", "~rewards.model", "+rewards.own={kind:function,function:length}")
    assert resolve_config(without).stages == ["sft", "ppo"]
    without.stages = ["sft", "reward", "ppo", NAME]
    assert "reward" in resolve_config(without).stages


@pytest.mark.parametrize(
    ("group", "key", "value", "is_another"),
    [
        ("evaluate_reward", "probes", 3, True), ("data", "max_response_tokens", 9, True), ("", "gold", None, True),
        ("evaluate_reward", "tokens_per_pass", 99, False), ("rollout", "temperature", 0.5, False),
        ("rewards.model", "weight", 2.0, False),
    ],
)  # fmt: skip
def test_evaluations_that_ask_the_same_are_one(config, group, key, value, is_another):
    before = fingerprint(config, NAME, {"reward": "x"})
    target = config
    for name in filter(None, group.split(".")):
        target = getattr(target, name)
    setattr(target, key, value)
    assert (fingerprint(config, NAME, {"reward": "x"}) != before) == is_another


def test_an_evaluation_is_planned_by_the_texts_that_it_reads(config):
    laid_out = choose_layout(config, NAME).config
    laid_out.evaluate_reward.tokens_per_pass = 4 * (laid_out.data.max_prompt_tokens + laid_out.data.max_response_tokens)
    plan = plan_stage(laid_out, NAME, None, heldout=20)
    assert (plan.steps, plan.fits, plan.disk) == (10, True, 0.0)  # 40 texts, 4 at a time
    assert plan.phases["evaluate"] > 0 and set(plan.memory) == {"score"}
    assert plan_stage(laid_out, NAME, None, heldout=0).steps is None


def test_what_cannot_be_evaluated_is_told(make_config):
    config = make_config("stages=[evaluate_reward]", "evaluate_reward.rewardbench=none.jsonl", "gold=model")
    told = [str(problem) for problem in kind_of(NAME).problems(config)]
    assert told[0].startswith("evaluate_reward.rewardbench=none.jsonl: there is no such file")
    assert told[1].startswith("gold=model: it is a reward model")
