"""Switches of an algorithm that contradict each other are refused before anything starts, with key, value and fix."""

import pytest

from rlhf.catalog.estimator import has_critic, has_reference, needs_of
from rlhf.catalog.stage import kind_of
from rlhf.config.errors import ConfigError
from rlhf.experiment.fingerprint import fingerprint
from rlhf.planner.memory import Batch, phase_bytes
from rlhf.planner.ppo import phase_flops
from rlhf.planner.storage import saved_bytes, state_on_disk
from rlhf.stages.ppo.algorithms import algorithm_problems


@pytest.fixture
def refused(make_config):
    """`refused(overrides)`: what is refused, by key."""
    return lambda *overrides: {error.key: str(error) for error in algorithm_problems(make_config(*overrides))}


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (("algorithm=grpo", "rollout.samples_per_prompt=1"), "rollout.samples_per_prompt", "set it to 4"),
        (("algorithm=rloo", "rollout.do_sample=false"), "rollout.do_sample", "set rollout.do_sample=true"),
        (("ppo.dynamic_sampling=true",), "rollout.samples_per_prompt", "set it to 4"),
        (("ppo.kl_placement=loss",), "ppo.kl_estimator", "set ppo.kl_estimator=k3"),
        (("algorithm=dapo", "ppo.kl_controller=adaptive"), "ppo.kl_controller", "set it fixed"),
        (("algorithm=grpo", "ppo.whiten_advantages=true"), "ppo.whiten_advantages", "choose one of the two"),
        (("ppo.group_std=true",), "ppo.group_std", "set it false"),
        (("algorithm=grpo", "ppo.baseline_of=score"), "ppo.baseline_of", "set ppo.baseline_of=rewards"),
        (
            ("ppo.ratio_level=sequence", "ppo.loss_aggregation=sequence_mean"),
            "ppo.ratio_level",
            "set ppo.ratio_level=token",
        ),
        (("algorithm=gspo", "ppo.loss_aggregation=token_mean"), "ppo.loss_aggregation", "sequence_mean"),
        (("algorithm=rloo", "ppo.baseline_of=score"), "ppo.ratio_level", "set ppo.ratio_level=token"),
        (("ppo.estimator=raft", "rollout.samples_per_prompt=4"), "ppo.whiten_advantages", "set it false"),
        (("algorithm=raft", "ppo.dual_clip=3"), "ppo.dual_clip", "set it null"),
        (("algorithm=rloo", "ppo.critic_warmup=2"), "ppo.critic_warmup", "set it 0"),
        (("algorithm=rloo", "ppo.critic_gae_lambda=1"), "ppo.critic_gae_lambda", "set it null"),
        (("algorithm=rloo", "ppo.best_share=0.2"), "ppo.best_share", "set it null"),
        (("algorithm=dapo", "ppo.reference_refresh=3"), "ppo.reference_refresh", "set it null"),
        (("ppo.reference_refresh=3", "lora=r8"), "ppo.reference_refresh", "lora=none"),
        (("algorithm=dapo", "rollout.fixed_length=true"), "ppo.overlong_filter", "set it false"),
        (("algorithm=online_dpo", "ppo.update_epochs=2"), "ppo.update_epochs", "set it 1"),
        (("algorithm=online_dpo", "ppo.overlong_filter=true"), "ppo.overlong_filter", "set it false"),
        (("algorithm=online_dpo", "ppo.train_on_eos=false"), "ppo.train_on_eos", "set it true"),
        (("algorithm=online_dpo", "ppo.whiten_rewards=true"), "ppo.whiten_rewards", "set it false"),
        (("algorithm=gdpo", "ppo.whiten_rewards=true"), "ppo.whiten_rewards", "set it false"),
        (("algorithm=grpo", "ppo.gamma=0.9"), "ppo.gamma", "set it 1"),
        (("algorithm=remax", "rollout.do_sample=false"), "rollout.do_sample", "set it true"),
        (("algorithm=online_dpo", "rollout.samples_per_prompt=4"), "rollout.samples_per_prompt", "set it to 2"),
        (("algorithm=rloo", "ppo.group_of=each", "ppo.kl_placement=none"), "ppo.group_of", "algorithm=gdpo"),
        (("algorithm=gdpo", "ppo.eos_penalty=-1"), "ppo.eos_penalty", "set it null"),
        (("algorithm=gdpo", "ppo.kl_placement=reward"), "ppo.kl_placement", "loss or none"),
        (("ppo.estimator=no.such:thing",), "ppo.estimator", "choose one of gae"),
    ],
)
def test_what_contradicts_itself_is_refused(refused, overrides, key, fix):
    assert fix in refused(*overrides)[key]


def test_every_algorithm_is_sound(refused):
    for name in (
        "ppo",
        "rloo",
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "gdpo",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "remax",
        "raft",
    ):
        assert refused(f"algorithm={name}") == {}
    assert refused("algorithm=online_dpo", "ppo.rollout_batch_size=128") == {}
    assert refused("ppo=deepspeed-chat", "algorithm=online_dpo") == {}  # whose PPO does not train the end
    assert refused("algorithm=rloo", "ppo.baseline_of=score", "ppo.ratio_level=token", "ppo.gamma=0.9") == {}


def test_kl_cannot_be_in_the_reward_and_in_the_loss(make_config):
    with pytest.raises(ConfigError, match=r"ppo\.kl_placement"):
        make_config("ppo.kl_placement=[reward,loss]")


def test_without_a_critic_there_is_none_in_plan_graph_and_checkpoint(make_config):
    ppo, grpo, dapo = (make_config(f"algorithm={name}") for name in ("ppo", "grpo", "dapo"))
    kind = kind_of("ppo")
    assert [has_critic(c) for c in (ppo, grpo, dapo)] == [True, False, False]
    assert [has_reference(c) for c in (ppo, grpo, dapo)] == [True, True, False]
    assert [len(kind.roles(c)) for c in (ppo, grpo, dapo)] == [4, 3, 2]
    assert [[given.name for given in kind.inputs_of(c)] for c in (ppo, grpo)] == [
        ["actor", "reward", "critic"],
        ["actor", "reward"],
    ]
    for size in (state_on_disk, saved_bytes):
        assert size(grpo, "ppo") < size(ppo, "ppo") == 2 * size(grpo, "ppo")  # the critic is as large as the actor
    totals = [{p: sum(b.values()) for p, b in phase_bytes(c, "ppo", Batch(8, 8)).items()} for c in (ppo, grpo, dapo)]
    assert totals[0]["update"] > totals[1]["update"] > totals[2]["update"]
    assert totals[1]["evaluate"] == totals[2]["evaluate"]  # which loads where the policy began
    flops = [phase_flops(c, [10], [20]) for c in (ppo, grpo, dapo)]
    assert flops[0]["score"] > flops[1]["score"] > flops[2]["score"] and flops[0]["update"] > flops[1]["update"]


def test_greedy_answers_are_counted(make_config):
    remax, reinforce = (phase_flops(make_config(f"algorithm={n}"), [10, 10], [20, 20]) for n in ("remax", "reinforce_pp"))
    assert remax["rollout"] == 2 * reinforce["rollout"] and remax["score"] > reinforce["score"]


@pytest.mark.parametrize(
    ("algorithm", "override", "same"),
    [
        ("grpo", "ppo.critic_learning_rate=0.5", True),
        ("grpo", "lora@critic_lora=r8", True),
        ("grpo", "ppo.gae_lambda=0.5", True),
        ("grpo", "ppo.kl_coef=0.5", False),
        ("dapo", "ppo.kl_coef=0.5", True),
        ("online_dpo", "ppo.kl_coef=0.5", False),
        ("ppo", "ppo.critic_learning_rate=0.5", False),
        ("grpo", "algorithm=dapo", False),
    ],
)
def test_what_an_algorithm_does_not_read_is_not_in_its_fingerprint(make_config, algorithm, override, same):
    one, other = (make_config(f"algorithm={algorithm}", *more) for more in ((), (override,)))
    assert (fingerprint(one, "ppo", {}) == fingerprint(other, "ppo", {})) == same


def test_the_name_of_an_algorithm_decides_nothing(make_config, set_key):
    config = make_config("algorithm=grpo")
    before = fingerprint(config, "ppo", {})
    assert fingerprint(set_key(config, "algorithm", "mine"), "ppo", {}) == before


def test_a_need_that_there_is_not_is_refused(tmp_path, monkeypatch):
    (tmp_path / "lab_estimators.py").write_text("def plain(rollout, config): ...\nplain.needs = {'gold'}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"ppo\.estimator=lab_estimators:plain: it needs gold, which is not known"):
        needs_of("lab_estimators:plain")


def test_dpo_is_an_algorithm_to_a_sweep(make_config):
    assert make_config("algorithm=dpo").stages == ["sft", "dpo"]
    assert make_config("algorithm=ppo").stages == ["sft", "reward", "ppo"]
