import json

import pytest

from rlhf.algo.entropy import EntropyBonus


def test_without_a_target_the_weight_stays():
    bonus = EntropyBonus(0.01, None, 0.005)
    bonus.update(100.0)
    assert bonus.weight == 0.01


def test_the_weight_rises_below_the_target_and_is_0_above_it():
    bonus = EntropyBonus(0.0, 1.0, 0.005)
    for entropy, weight in (
        (0.5, 0.005),
        (0.9, 0.01),
        (1.5, 0.0),
        (0.5, 0.01),
        (2.0, 0.0),
        (2.0, 0.0),
        (2.0, 0.0),
        (1.0, 0.005),
    ):
        bonus.update(entropy)
        assert bonus.weight == pytest.approx(weight)


def test_it_goes_on_where_it_was():
    bonus, other = EntropyBonus(0.0, 1.0, 0.005), EntropyBonus(0.0, 1.0, 0.005)
    bonus.update(0.5)
    bonus.update(1.5)
    other.load_state_dict(json.loads(json.dumps(bonus.state_dict())))
    for entropy in (0.5, 2.0):
        bonus.update(entropy)
        other.update(entropy)
        assert other.weight == bonus.weight
