"""The bounds on rounding (rounding.py) let rounding pass, and nothing that is wrong."""

import copy
import re

import pytest
import torch
from support.command import TESTS
from support.rounding import GRADIENT, STEP, gradient_gap, step_gap
from support.tiny_models import smooth_opt

from rlhf.models.forward import response_logprobs
from rlhf.models.load import new_policy
from rlhf.runtime.distributed import start

pytestmark = pytest.mark.rounding

RESPONSE = 9


@pytest.fixture(scope="module")
def policy(make_config, tokenizer):
    config = make_config()
    start(config)
    with smooth_opt():
        return new_policy(config.model, config, tokenizer, config.zero, 0.0).requires_grad_(True)


@pytest.fixture(scope="module")
def batch():
    """Eight prompts and responses of unequal length: ids and mask [8, 21]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 500, (8, 12 + RESPONSE), generator=generator)
    asked, told = (torch.randint(1, most + 1, (8, 1), generator=generator) for most in (12, RESPONSE))
    columns = torch.arange(12 + RESPONSE)
    return ids, ((columns >= 12 - asked) & (columns < 12 + told)).long()


def gradients(policy, ids, mask, packing="none", weight=1.0):
    """Of a policy loss with advantages of mean 0, in which terms cancel."""
    actions = mask[:, -RESPONSE:]
    advantages = torch.randn(actions.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages = (advantages - (advantages * actions).sum() / actions.sum()) * actions * weight
    logprobs, _ = response_logprobs(policy, ids, mask, RESPONSE, 1.0, packing)
    loss = (advantages.to(logprobs.dtype) * logprobs).sum() / actions.sum()
    return torch.autograd.grad(loss, list(policy.parameters()))


def adamw_step(policy, slopes):
    """The weights after AdamW's first step by these gradients."""
    stepped = [parameter.detach().clone().requires_grad_() for parameter in policy.parameters()]
    for parameter, slope in zip(stepped, slopes, strict=True):
        parameter.grad = slope.to(parameter.dtype)
    torch.optim.AdamW(stepped, lr=1e-3, eps=1e-8, weight_decay=0.0).step()
    return stepped


def noisy(slopes, share):
    """Gradients with an error of this share of the norm of each row, as rounding has: a row of zeros stays one."""
    generator = torch.Generator().manual_seed(2)
    return [
        g + share * g.norm(dim=-1, keepdim=True) / g.size(-1) ** 0.5 * torch.randn(g.shape, generator=generator)
        for g in slopes
    ]


def test_float32_is_within_the_bounds_of_float64(policy, batch):
    exact = gradients(copy.deepcopy(policy).double(), *batch)
    for packing in ("none", "length", "packed"):
        assert gradient_gap(gradients(policy, *batch, packing), exact) < GRADIENT / 4


def test_two_ways_to_compute_the_same_step_are_within_the_bounds(policy, batch):
    """As are gradients with the whole error that the bound allows."""
    before, plain = list(policy.parameters()), gradients(policy, *batch)
    expected = adamw_step(policy, plain)
    assert step_gap(adamw_step(policy, gradients(policy, *batch, "packed")), expected, before) < STEP / 4
    assert step_gap(adamw_step(policy, noisy(plain, GRADIENT)), expected, before) < STEP


def faults(ids, mask):
    """Batches with a small fault: one token of a prompt is not seen, one of a response does not count, padding is seen, one
    id is another."""
    unseen, uncounted, seen, other = mask.clone(), mask.clone(), mask.clone(), ids.clone()
    unseen[0, int(mask[0].nonzero()[0])] = 0
    uncounted[1, int(mask[1].nonzero()[-1])] = 0
    row = int(mask[:, :12].sum(1).argmin())
    seen[row, int(mask[row].nonzero()[0]) - 1] = 1
    other[2, int(mask[2].nonzero()[0])] += 1
    return {"unseen": (ids, unseen), "uncounted": (ids, uncounted), "padding": (ids, seen), "another id": (other, mask)}


@pytest.mark.parametrize("fault", ["unseen", "uncounted", "padding", "another id"])
def test_a_wrong_token_is_beyond_both_bounds(policy, batch, fault):
    before, plain = list(policy.parameters()), gradients(policy, *batch)
    wrong = gradients(policy, *faults(*batch)[fault])
    assert gradient_gap(wrong, plain) > 100 * GRADIENT
    assert step_gap(adamw_step(policy, wrong), adamw_step(policy, plain), before) > STEP


def test_an_error_of_a_hundredth_is_beyond_both_bounds(policy, batch):
    before, plain = list(policy.parameters()), gradients(policy, *batch)
    wrong = noisy(plain, 0.01)
    assert gradient_gap(wrong, plain) > 100 * GRADIENT
    assert step_gap(adamw_step(policy, wrong), adamw_step(policy, plain), before) > STEP


def test_a_wrong_factor_is_beyond_the_bound_of_gradients(policy, batch):
    """Which a step by AdamW hides."""
    assert gradient_gap(gradients(policy, *batch, weight=1.01), gradients(policy, *batch)) > 100 * GRADIENT


def test_one_wrong_tensor_among_many_is_beyond_the_bound(policy, batch):
    plain = gradients(policy, *batch)
    whole = torch.cat([g.flatten() for g in plain]).norm()
    for place, slope in enumerate(plain):
        if slope.norm() < 1e-4 * whole:
            continue  # of keys' biases, 0 but for rounding
        wrong = [*plain[:place], slope.roll(1) if slope.ndim == 1 else slope.flip(0), *plain[place + 1 :]]
        assert gradient_gap(wrong, plain) > 2 * GRADIENT


def test_whoever_uses_the_bounds_is_run_with_other_processors_arithmetic_too():
    """By `.ci/run`, which takes the tests that are so marked."""
    users = re.compile(
        r"^ *from support.(rounding|rollout_compare) import"
        r"|^ *from support.tiny_models import .*(smooth_opt|assert_same_update)",
        re.M,
    )
    files = [file for file in TESTS.rglob("test_*.py") if file.parent.name != "gpu"]
    used = {file.name for file in files if users.search(file.read_text())}
    marked = {file.name for file in files if "\npytestmark = pytest.mark.rounding\n" in file.read_text()}
    assert len(used) > 10 and used <= marked
