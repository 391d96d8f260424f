import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.runtime.seeds import random_stream, torch_seed, uniforms

samples = st.lists(st.integers(0, 2**31), min_size=1, max_size=6)


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), samples, st.randoms(use_true_random=False))
def test_a_samples_numbers_do_not_depend_on_its_batch(seed, step, batch, random):  # row 28
    together = uniforms(seed, "rollout", step, batch, 5)
    order = random.sample(range(len(batch)), len(batch))
    shuffled = uniforms(seed, "rollout", step, [batch[i] for i in order], 5)
    assert np.array_equal(shuffled, together[order])
    for row, sample in enumerate(batch):
        assert np.array_equal(uniforms(seed, "rollout", step, [sample], 5)[0], together[row])


def test_numbers_are_uniform_float32_in_the_unit_interval():
    numbers = uniforms(0, "rollout", 0, list(range(200)), 500)
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert numbers.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / numbers.size) ** 0.5)
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert ((counts - 5000) ** 2 / 5000).sum() < 60  # chi-square with 19 degrees of freedom


def test_every_part_of_its_name_makes_another_stream():
    names = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (0, "a", 1, 1)]
    draws = {random_stream(*name).random() for name in names}
    assert len(draws) == len(names)


def test_a_stream_can_be_drawn_again():
    assert (
        random_stream(3, "order", 1, 2).permutation(10).tolist() == random_stream(3, "order", 1, 2).permutation(10).tolist()
    )


def test_torch_seeds_fit_and_differ():
    found = {torch_seed(seed, purpose) for seed in range(20) for purpose in ("policy weights", "scorer weights")}
    assert len(found) == 40
    assert all(0 <= seed < 2**63 for seed in found)
