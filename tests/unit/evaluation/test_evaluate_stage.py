"""The stage evaluate before anything runs: what tells evaluations apart, and what they take."""

import pytest

from rlhf.experiment.fingerprint import fingerprint
from rlhf.planner.auto import choose_layout
from rlhf.planner.plan import plan_stage


@pytest.fixture
def config(make_config):
    """The evaluation of a policy that a run trains."""
    return make_config("stages=[sft,reward,ppo,evaluate]")


def test_an_evaluation_is_planned_by_its_answers(config):
    laid_out = choose_layout(config, "evaluate").config
    laid_out.evaluate.batch_size = 8
    plan = plan_stage(laid_out, "evaluate", None, heldout=20)
    assert (plan.steps, plan.fits) == (3, True)
    assert plan.phases["evaluate"] > 0
    laid_out.evaluate.samples = 4
    assert plan_stage(laid_out, "evaluate", None, heldout=20).steps == 10


@pytest.mark.parametrize(
    ("group", "key", "value", "is_another"),
    [
        ("evaluate", "samples", 4, True), ("evaluate", "prompts", "deepspeed-chat", True), ("rollout", "top_k", 5, True),
        ("evaluate", "batch_size", 3, False), ("rollout", "samples_per_prompt", 4, False), ("ppo", "kl_coef", 0.5, False),
    ],
)  # fmt: skip
def test_evaluations_that_ask_the_same_are_one(config, group, key, value, is_another):
    before = fingerprint(config, "evaluate", {"actor": "x"})
    setattr(getattr(config, group), key, value)
    assert (fingerprint(config, "evaluate", {"actor": "x"}) != before) == is_another
