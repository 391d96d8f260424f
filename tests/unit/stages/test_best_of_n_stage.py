"""Best-of-n: which responses become records, what the best of n is worth, and who reads the data set that is made."""

import itertools
import math
from statistics import mean

import numpy as np
import pytest
from support.small import SMALL_DEMO

from rlhf.algo.best_of_n import bound_kl, estimate_best_of
from rlhf.catalog.stage import kind_of
from rlhf.cli.prepare import resolve_config
from rlhf.config.errors import ConfigError
from rlhf.experiment.graph import build_graph
from rlhf.planner.memory import Batch, phase_bytes
from rlhf.stages.best_of_n.choose import Answers, NoRecord, choose, make_row
from rlhf.stages.best_of_n.run import measure

POOL = [0.1, 0.2, 0.4, 0.5, 0.9]


def answers(scores, ended=None, texts="abcdef", gold=None):
    count = len(scores)
    done = [True] * count if ended is None else ended
    return Answers(3, list(texts[:count]), list(scores), gold or [None] * count, done, [4] * count)


def test_the_best_of_n_is_estimated_from_one_pool():
    found = [estimate_best_of(POOL, POOL, n) for n in (1, 2, 3, 5)]
    assert found == pytest.approx([0.42, 0.61, 0.73, 0.9])
    assert [bound_kl(n) for n in (1, 2, 64)] == pytest.approx([0.0, 0.193147, 3.174508], abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_estimate_is_the_mean_over_all_choices_of_n(n):
    """Of equal scores each is as likely to be taken; what cannot be chosen is taken where nothing else is."""
    scores, gold = [1.0, 2.0, 2.0, -math.inf, 0.5], [5.0, -1.0, 3.0, 2.0, 0.0]
    expected = []
    for chosen in itertools.combinations(range(5), n):
        most = max(scores[i] for i in chosen)
        expected.append(mean(gold[i] for i in chosen if scores[i] == most))
    assert estimate_best_of(scores, gold, n) == pytest.approx(mean(expected))


@pytest.fixture
def made(make_config):
    return lambda *overrides: make_config(*(f"best_of_n.{word}" for word in overrides)).best_of_n


def test_the_best_response_and_the_worst_are_a_pair(made):
    random = np.random.default_rng(0)
    assert choose(answers([0.5, 2.0, 2.0, -1.0]), made(), random) == (1, 3)
    assert choose(answers([0.5, 2.0, None, 9.0], [True, True, True, False]), made(), random) == (1, 0)
    rivals = {choose(answers([0.5, 2.0, 1.0]), made("rival=random"), np.random.default_rng(s))[1] for s in range(20)}
    assert rivals == {0, 2}
    assert choose(answers([0.5, 2.0, 2.0]), made("format=responses"), random) == (1, None)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (answers([1.0, 1.0]), "data/ties"),
        (answers([1.0, 0.5], texts="aa"), "data/ties"),
        (answers([1.0, 0.5], [True, False]), "data/left_out"),
        (answers([None, None]), "data/left_out"),
    ],
)
def test_what_makes_no_pair_is_counted(made, found, reason):
    with pytest.raises(NoRecord, match=reason):
        choose(found, made(), np.random.default_rng(0))


def test_a_row_has_the_record_of_its_prompt_and_both_scores():
    found = make_row("Why?", {"answer": "42", "score_chosen": 9}, answers([1.0, 0.25], gold=[3.0, 4.0]), 0, 1)
    assert found == {
        "answer": "42", "prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 1.0, "score_rejected": 0.25,
        "gold_chosen": 3.0, "gold_rejected": 4.0,
    }  # fmt: skip


def test_held_out_answers_tell_the_curve():
    pools = [
        answers([0.0, 1.0, 2.0], gold=[1.0, 5.0, 3.0]),
        answers([0.0, 1.0, 2.0], [True, True, False], gold=[0.0, 2.0, 4.0]),
    ]
    found = measure(pools, [1, 2])
    assert found["eval/gold_best_of_1"] == found["eval/gold_sft"] == pytest.approx((3 + 2) / 2)
    assert found["eval/gold_best_of_2"] == pytest.approx(((5 + 3 + 3) / 3 + (2 + 2 + 0) / 3) / 2)
    assert found["eval/gold"] == (3 + 2) / 2 and found["eval/reward"] == (2 + 1) / 2


def test_the_data_set_that_is_made_is_an_input(make_config):
    config = make_config("stage=sft-reward-best-of-n-dpo")
    assert config.stages == ["sft", "reward", "best_of_n", "dpo"] and config.dpo.data == "best_of_n"
    sft, reward, made, dpo = build_graph(config)
    assert made.parents == (sft.fingerprint, reward.fingerprint)
    assert set(dpo.parents) == {sft.fingerprint, made.fingerprint, reward.fingerprint}
    assert dpo.inputs["data"] == str(made.directory.path / "data")
    for word, changed in (("best_of_n.rival=random", 2), ("best_of_n.batch_size=512", 0), ("rollout.temperature=0.5", 2)):
        other = build_graph(make_config("stage=sft-reward-best-of-n-dpo", word))
        assert len({node.fingerprint for node in other} - {n.fingerprint for n in (sft, reward, made, dpo)}) == changed
    alone = [build_graph(make_config("stage=sft-dpo", *more))[1] for more in ((), ("best_of_n.rival=random",))]
    assert alone[0].fingerprint == alone[1].fingerprint and "data" not in alone[0].inputs


def test_gold_labels_need_no_reward_model(make_config):
    config = make_config("stage=sft-best-of-n-reward", "gold=length")
    sft, made, reward = build_graph(config)
    assert [node.stage for node in (sft, made, reward)] == ["sft", "best_of_n", "reward"]
    assert made.parents == (sft.fingerprint,) and reward.parents == (made.fingerprint,)
    other = build_graph(make_config("stage=sft-best-of-n-reward", "gold=length", "rewards.model.weight=2"))
    assert other[1].fingerprint == made.fingerprint
    assert len(kind_of("best_of_n").roles(config)) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("stage=sft-best-of-n-reward", "best_of_n.judge=rewards"),
        ("stage=ppo", "reward.data=best_of_n", "dry_run=true"),
        ("stages=[best_of_n,sft]", "sft.data=best_of_n", "rollout.samples_per_prompt=2", "best_of_n.judge=gold"),
    ],
)
def test_stages_that_need_each_other_are_refused(make_config, words):
    with pytest.raises(ConfigError, match="these stages need each other's results"):
        build_graph(make_config(*words))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("rollout.samples_per_prompt=1",), "rollout.samples_per_prompt"),
        (("best_of_n.batch_size=12",), "best_of_n.batch_size"),
        (("rollout.fixed_length=true", "ppo.eos_penalty=null"), "rollout.fixed_length"),
        (("best_of_n.judge=gold", "data=files", "data.files.train=a.jsonl"), "best_of_n.judge"),
        (("stages=[dpo]", "dpo.data=nowhere"), "dpo.data"),
    ],
)
def test_what_cannot_be_made_is_refused(make_config, words, key):
    with pytest.raises(ConfigError) as raised:
        resolve_config(make_config("stage=best_of_n", *words))
    assert key in str(raised.value)


def test_its_plan_holds_models_that_read_and_no_update(make_config):
    config = make_config(*SMALL_DEMO, "stage=best_of_n")
    phases = phase_bytes(config, "best_of_n", Batch(8, 8))
    assert set(phases) == {"load", "rollout", "score"} and phases["rollout"]["cache"] > 0
    assert all(parts.get("optimizer", 0) == parts.get("gradients", 0) == 0 for parts in phases.values())
