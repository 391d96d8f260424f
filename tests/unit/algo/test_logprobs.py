import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlhf.algo.logprobs as logprobs_module
from rlhf.algo.logprobs import token_logprobs

pytestmark = pytest.mark.rounding


def batch(seed, rows, width, vocabulary, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(rows, width, vocabulary, generator=generator)).to(dtype)
    return logits, torch.randint(vocabulary, (rows, width), generator=generator)


def exact(logits, tokens, temperature):
    """log-softmax and gather in float64, and the entropy by its definition."""
    log_softmax = torch.log_softmax(logits.double() / temperature, -1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_softmax.gather(-1, tokens[..., None]).squeeze(-1), entropy


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 7), st.integers(2, 20),
    st.sampled_from([0.5, 0.7, 1.0, 2.0]), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 30),
)  # fmt: skip
def test_values_match_float64_at_any_temperature_format_and_chunk(seed, rows, width, vocabulary, temperature, dtype, chunk):
    """Rows 14 and 32: half-precision logits come out as exact as float32 ones, so nothing is computed in half precision."""
    logits, tokens = batch(seed, rows, width, vocabulary, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs_module, "CHUNK", chunk)
        found = token_logprobs(logits, tokens, temperature)
    for column, expected in zip(found, exact(logits, tokens, temperature), strict=True):
        assert column.dtype == torch.float32
        assert column.shape == tokens.shape
        torch.testing.assert_close(column.double(), expected, atol=1e-5, rtol=1e-5)


def test_logprobs_and_entropy_of_hand_cases():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -1e9, -1e9]]])
    found, entropy = token_logprobs(logits, torch.tensor([[2, 0]]), 1.0)
    assert found.tolist() == [[pytest.approx(-math.log(4)), pytest.approx(math.log(0.75))]]
    assert entropy.tolist() == [[pytest.approx(math.log(4)), pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))]]


def test_temperature_divides_the_logits():  # row 14
    logits = torch.tensor([[[math.log(4.0), 0.0]]])
    assert token_logprobs(logits, torch.tensor([[0]]), 2.0)[0].item() == pytest.approx(math.log(2 / 3))


def test_huge_logits_stay_finite():
    found, entropy = token_logprobs(torch.tensor([[[3e4, 0.0, -3e4]]]), torch.tensor([[1]]), 1.0)
    assert found.item() == pytest.approx(-3e4)
    assert entropy.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 7, 15, 16])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, chunk):  # row 32
    logits, tokens = batch(0, 3, 5, 11)
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for size in (1024, chunk):
        monkeypatch.setattr(logprobs_module, "CHUNK", size)
        leaf = logits.clone().requires_grad_()
        values, entropy = token_logprobs(leaf, tokens, 0.7)
        (values * weights).sum().backward()
        results.append((values.detach(), entropy, leaf.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)


def test_gradient_matches_float64():
    logits, tokens = batch(3, 2, 4, 6)
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    token_logprobs(single, tokens, 0.7)[0].sum().backward()
    exact(double, tokens, 0.7)[0].sum().backward()
    torch.testing.assert_close(single.grad.double(), double.grad, atol=1e-6, rtol=1e-5)


def test_no_more_than_a_chunk_is_computed_at_once(monkeypatch):  # row 32
    sizes, plain = [], logprobs_module.chunk_logprobs

    def noted(logits, tokens, entropies):
        sizes.append(len(tokens))
        return plain(logits, tokens, entropies)

    monkeypatch.setattr(logprobs_module, "CHUNK", 4)
    monkeypatch.setattr(logprobs_module, "chunk_logprobs", noted)
    token_logprobs(*batch(0, 3, 5, 11), 1.0)
    assert sizes == [4, 4, 4, 3]


def test_a_backward_pass_keeps_no_float32_copy_of_the_logits(monkeypatch):  # row 32
    """What autograd keeps for the backward pass is the half-precision logits alone, not their float32 log-softmax."""
    monkeypatch.setattr(logprobs_module, "CHUNK", 4)
    logits, tokens = batch(0, 4, 4, 64, torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        token_logprobs(logits.requires_grad_(), tokens, 1.0)
    assert not [t for t in kept if t.dtype == torch.float32 and t.numel() >= 4 * 64]


@pytest.mark.parametrize("picked", [False, True])
def test_neither_pass_makes_a_float32_tensor_of_the_logits_size(monkeypatch, picked):  # row 32
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.dtype == torch.float32]
            self.elements = max([self.elements, *made])
            return out

    monkeypatch.setattr(logprobs_module, "CHUNK", 4)
    logits, tokens = batch(0, 4, 8, 64, torch.bfloat16)
    at = torch.arange(32).view(4, 8) if picked else None
    with Largest() as largest:
        token_logprobs(logits.requires_grad_(), tokens, 0.7, at)[0].sum().backward()
    assert logits.grad.dtype == torch.bfloat16 and largest.elements == 4 * 64


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_logits_are_picked_by_their_indices(monkeypatch, chunk):
    monkeypatch.setattr(logprobs_module, "CHUNK", chunk)
    logits, _ = batch(0, 3, 5, 11)
    at, tokens = torch.tensor([13, 2, 7, 1]), torch.tensor([3, 10, 0, 3])
    whole, part = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = token_logprobs(part, tokens, 0.7, at)
    expected = exact(whole.flatten(0, 1)[at], tokens, 0.7)
    for column, right in zip(found, expected, strict=True):
        torch.testing.assert_close(column.double(), right, atol=1e-5, rtol=1e-5)
    found[0].sum().backward()
    expected[0].sum().backward()
    torch.testing.assert_close(part.grad, whole.grad, atol=1e-6, rtol=1e-5)


def test_entropies_that_are_not_asked_for_are_not_computed():
    logits, tokens = batch(0, 2, 3, 5)
    logprobs, entropies = token_logprobs(logits, tokens, 0.7, entropies=False)
    assert torch.equal(logprobs, token_logprobs(logits, tokens, 0.7)[0]) and not entropies.any()


def test_entropy_carries_no_gradient():
    logits, tokens = batch(0, 1, 2, 5)
    values, entropy = token_logprobs(logits.requires_grad_(), tokens, 1.0)
    assert values.requires_grad
    assert not entropy.requires_grad


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("picked", [False, True])
def test_entropy_that_learns_has_the_exact_gradient(monkeypatch, chunk, picked):
    monkeypatch.setattr(logprobs_module, "CHUNK", chunk)
    logits, _ = batch(0, 3, 5, 11)
    at, tokens = (
        (torch.tensor([13, 2, 7, 1]), torch.tensor([3, 10, 0, 3])) if picked else (None, torch.arange(15).view(3, 5) % 11)
    )
    ours, exactly = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    rows = exactly.flatten(0, 1)[at] if picked else exactly
    weights = torch.linspace(-1, 2, tokens.numel()).view(tokens.shape)
    for found, wanted in ((token_logprobs(ours, tokens, 0.7, at, entropy_learns=True), exact(rows, tokens, 0.7)),):
        (found[0] * weights + found[1] * weights.flip(0)).sum().backward()
        (wanted[0] * weights + wanted[1] * weights.flip(0)).sum().backward()
    torch.testing.assert_close(ours.grad, exactly.grad, atol=1e-6, rtol=1e-5)
