import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.masked import all_ranks_sum, global_moments, masked_sum, whiten

seeds, rows, widths = st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9)


def test_sum_of_a_hand_case():
    values, mask = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_sum(values, mask) == 6.0


def test_moments_of_a_hand_case():
    values, mask = torch.tensor([[1.0, 2.0, 100.0], [3.0, 4.0, 100.0]]), torch.tensor([[1, 1, 0], [1, 1, 0]])
    mean, std = global_moments(values, mask)
    assert mean == 2.5
    assert std.item() == pytest.approx((5 / 3) ** 0.5)  # squares 2.25 + 0.25 + 0.25 + 2.25 over n - 1 = 3
    assert mean.dtype == std.dtype == torch.float64


def test_variance_beside_a_large_mean_does_not_cancel():
    values = 1e9 + torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    assert global_moments(values, torch.ones(1, 3))[1].item() == pytest.approx(1.0)


def test_moments_of_one_value_are_finite():
    mean, std = global_moments(torch.tensor([[5.0, 1.0]]), torch.tensor([[1, 0]]))
    assert (mean, std) == (5.0, 0.0)


@given(seeds, rows, widths)
def test_padding_never_matters_not_even_nan(ragged, poison, seed, rows, width):  # row 29
    mask, values = ragged(seed, rows, width, 1)
    poisoned = poison(values, mask)
    zeroed = values * mask
    assert torch.equal(masked_sum(poisoned, mask), masked_sum(zeroed, mask))
    for found, expected in zip(global_moments(poisoned, mask), global_moments(zeroed, mask), strict=True):
        assert torch.equal(found, expected)


@given(seeds, rows, widths, st.booleans())
def test_whitening_ignores_nan_in_padding(ragged, poison, seed, rows, width, shift):  # row 29
    mask, values = ragged(seed, rows, width, 1)
    assert torch.equal(whiten(poison(values, mask), mask, shift), whiten(values * mask, mask, shift))


def test_gradient_of_a_sum_is_zero_on_padding():
    values = torch.tensor([[1.0, torch.nan]], requires_grad=True)
    masked_sum(values, torch.tensor([[1, 0]])).backward()
    assert values.grad.tolist() == [[1.0, 0.0]]


@given(seeds, rows, st.integers(2, 9))
def test_whitening_gives_mean_zero_and_std_one_over_the_mask(ragged, seed, rows, width):  # row 22
    mask, values = ragged(seed, rows, width, 1)
    mask[0, :2] = 1
    real = whiten(3.0 * values + 7.0, mask)[mask.bool()]
    assert real.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert real.std().item() == pytest.approx(1.0, abs=1e-5)


@given(seeds, rows, st.integers(2, 9))
def test_whitening_without_shift_keeps_the_mean(ragged, seed, rows, width):  # row 20
    mask, values = ragged(seed, rows, width, 1)
    mask[0, :2] = 1
    values = 3.0 * values + 7.0
    real = whiten(values, mask, shift_mean=False)[mask.bool()]
    assert real.mean().item() == pytest.approx(values[mask.bool()].mean().item(), abs=1e-9)
    assert real.std().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whitening_keeps_dtype_and_zeroes_padding(dtype):
    values, mask = torch.tensor([[1.0, 3.0, 8.0]], dtype=dtype), torch.tensor([[1, 1, 0]])
    for shift in (True, False):
        whitened = whiten(values, mask, shift)
        assert whitened.dtype == dtype
        assert whitened[0, 2] == 0.0


def test_whitening_equal_values_gives_zeros():
    assert whiten(torch.full((2, 3), 4.0), torch.ones(2, 3)).abs().max() == 0.0


def test_one_process_sums_over_itself():
    assert all_ranks_sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
