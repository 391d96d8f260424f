import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.rollout.sampling import invert_cdf, next_tokens, restrict


def rollout(make_config, **changes):
    return make_config(*(f"rollout.{key}={value}" for key, value in changes.items())).rollout


def exact(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The distribution that should be drawn from, computed token by token."""
    probabilities = np.exp(np.asarray(logits, dtype=np.float64) / temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    keep, mass = [], 0.0
    for token in order[: top_k or len(order)]:
        kept = probabilities[order[: top_k or len(order)]].sum()
        if mass < top_p * kept or not keep:
            keep.append(token)
            mass += probabilities[token]
    result = np.zeros_like(probabilities)
    result[keep] = probabilities[keep] / probabilities[keep].sum()
    return result


@pytest.mark.parametrize(
    "setting", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 2.0, "top_k": 4, "top_p": 0.8}]
)
def test_samples_follow_the_distribution(make_config, setting):
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0, -2.0])
    count = 40_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(count, dtype=np.float32))
    tokens, _ = next_tokens(logits.expand(count, -1), uniforms, rollout(make_config, **setting))
    observed = np.bincount(tokens.numpy(), minlength=6)
    expected = exact(logits, **setting) * count
    assert (observed[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 25  # 99.9 % point of chi-square with 5 degrees of freedom is 20.5


def test_reported_log_probability_has_the_temperature_and_not_the_filters(make_config):
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    tokens, logprobs = next_tokens(logits, torch.tensor([0.99]), rollout(make_config, temperature=0.7, top_k=1))
    assert tokens.tolist() == [2]
    assert logprobs.item() == pytest.approx(torch.log_softmax(logits / 0.7, -1)[0, 2].item())


def test_greedy_takes_the_likeliest_that_is_allowed(make_config):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    greedy = rollout(make_config, do_sample="false")
    assert next_tokens(logits, torch.zeros(1), greedy)[0].tolist() == [1]
    assert next_tokens(logits, torch.zeros(1), greedy, forbid=torch.tensor([1]))[0].tolist() == [2]


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=50), st.floats(0, 1, exclude_max=True, width=32))
def test_a_token_of_probability_zero_is_never_drawn(values, uniform):
    logits = torch.tensor([values])
    allowed = logits.masked_fill(torch.arange(len(values)) % 2 == 1, -torch.inf)
    assert invert_cdf(allowed, torch.tensor([uniform])).item() % 2 == 0


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.integers(0, 35), st.floats(0.01, 1.0))
def test_filters_keep_the_likeliest_token(values, top_k, top_p):
    logprobs = torch.log_softmax(torch.tensor([values]), -1)
    kept = restrict(logprobs, top_k, top_p)
    assert torch.isfinite(kept[0, logprobs.argmax()])
    ties = logprobs.unique().numel() < len(values)  # those with the k-th likeliest stay
    assert (torch.isfinite(kept).sum() <= top_k) or top_k == 0 or ties


def test_the_row_alone_decides_its_token(make_config):
    logits, uniforms = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 0.99, 8)
    together = next_tokens(logits, uniforms, rollout(make_config))[0]
    alone = [next_tokens(logits[i : i + 1], uniforms[i : i + 1], rollout(make_config))[0].item() for i in range(8)]
    assert together.tolist() == alone
