"""Advantages of every algorithm against cases that were worked out by hand (numbers of the papers' formulas)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.estimators import ScoredRollout
from rlhf.algo.estimators.gae import advantages_and_returns, estimate_gae
from rlhf.algo.groups import group_stds, other_means, varies
from rlhf.algo.masked import whiten
from rlhf.algo.rewards import overlong_penalty, token_rewards
from rlhf.catalog.estimator import ESTIMATORS, load_estimator

SCORES = torch.tensor([1.0, 0.0, 0.5, 0.1])
SEQUENCE_KLS = torch.tensor([2.0, 1.0, 4.0, 0.0])


@pytest.fixture
def ppo(make_config):
    """`ppo("rloo", ...)`: the keys of an algorithm."""
    return lambda name, *overrides: make_config(f"algorithm={name}", *overrides).ppo


def rollout(scores=SCORES, kl=None, coef=0.0, copies=4, width=3, **more):
    """Responses of `width` tokens with these scores; the KL of a response is spread over its tokens."""
    mask = torch.ones(len(scores), width, dtype=torch.long)
    spread = torch.zeros(len(scores), width) if kl is None else (kl[:, None] / width).expand(-1, width)
    return ScoredRollout(token_rewards(scores, spread, mask, coef), mask, scores, copies, **more)


def estimate(ppo, scored):
    """The advantages of an algorithm, [B, R]."""
    return load_estimator(ppo.estimator)(scored, ppo).advantages


def close(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


def test_gdpo_normalises_the_sum_over_the_scored_responses(ppo):
    sums, scored = torch.tensor([1.0, 3.0, 5.0, 100.0]), torch.tensor([1, 1, 1, 0])
    close(estimate(ppo("gdpo"), rollout(group_scores=sums, is_scored=scored))[:, 0], -1.0, 0.0, 1.0, 0.0)


def test_rloo_without_kl(ppo):
    close(estimate(ppo("rloo"), rollout())[:, 1], 0.8, -0.53333, 0.13333, -0.4)


def test_rloo_takes_the_kl_penalty_before_the_baseline(ppo):
    found = estimate(ppo("rloo"), rollout(kl=SEQUENCE_KLS, coef=0.05))
    close(found[:, 0], 0.78333, -0.48333, -0.01667, -0.28333)
    assert torch.equal(found[:, 0], found[:, 2])  # one number for the whole sequence
    assert found.sum() == pytest.approx(0, abs=1e-5)


def test_rloo_as_openrlhf_has_it_takes_the_baseline_of_scores_alone(ppo):
    keys = ppo("rloo", "ppo.baseline_of=score", "ppo.ratio_level=token")
    found = estimate(keys, rollout(kl=SEQUENCE_KLS, coef=0.05))
    close(found[:, 0], 0.7, -0.58333, -0.06667, -0.4)  # the whole response's penalties are still to come
    close(found[0], 0.7, 0.8 - 0.1 * 2 / 3, 0.8 - 0.1 / 3)


def test_grpo_divides_by_the_groups_standard_deviation(ppo):
    close(estimate(ppo("grpo"), rollout())[:, 0], 1.319821, -0.879881, 0.219970, -0.659911)
    close(group_stds(SCORES, 4)[:1], 0.454606)


def test_dr_grpo_only_subtracts_the_mean(ppo):
    close(estimate(ppo("dr_grpo"), rollout())[:, 0], 0.6, -0.4, 0.1, -0.3)


@given(st.integers(2, 8), st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=4))
def test_dr_grpo_is_rloo_times_the_share_of_the_others(make_config, copies, centres):
    rloo, dr_grpo = (make_config(f"algorithm={name}").ppo for name in ("rloo", "dr_grpo"))
    scores = torch.cat([centre + torch.arange(copies) ** 1.5 for centre in centres])
    one, other = (estimate(keys, rollout(scores, copies=copies)) for keys in (rloo, dr_grpo))
    torch.testing.assert_close(other, one * (copies - 1) / copies, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo"])
def test_advantages_of_a_group_sum_to_0_and_of_equal_scores_are_0(ppo, name):
    found = estimate(ppo(name), rollout(torch.cat([SCORES, torch.full((4,), 0.7)])))[:, 0].view(2, 4)
    assert found.sum(1).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert found[0].abs().min() > 0.01 and found[1].abs().max() < 1e-6


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo"])
def test_equal_scores_have_advantages_of_exactly_0_whatever_they_are(ppo, name):
    """In single precision the mean of 8 scores of 5.3 is off by its last bit, which is half of GRPO's epsilon."""
    for copies in (3, 5, 8):
        scores = torch.linspace(-9.7, 9.7, 50).repeat_interleave(copies)
        assert not estimate(ppo(name), rollout(scores, copies=copies)).any()


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "reinforce_pp_baseline", "raft"])
def test_groups_do_not_see_each_other(ppo, name):
    whole = torch.cat([SCORES, 3 * SCORES.flip(0), SCORES - 7])
    alone = torch.cat([estimate(ppo(name), rollout(part)) for part in whole.split(4)])
    assert torch.equal(estimate(ppo(name), rollout(whole)), alone)


RAGGED = torch.tensor([[1, 1, 0], [1, 1, 1]])


def test_reinforce_pp_sums_what_comes_and_whitens_over_the_tokens_of_the_rollout(ppo):
    scores, kl = torch.tensor([1.0, -0.5]), torch.tensor([[0.2, -0.1, 9.0], [0.05, 0.3, 0.0]])
    scored = ScoredRollout(token_rewards(scores, kl, RAGGED, 0.1), RAGGED, scores)
    found = estimate(ppo("reinforce_pp"), scored)
    close(found[0], 0.99, 1.01, 0.0)
    close(found[1], -0.535, -0.53, -0.5)
    white = whiten(found, RAGGED)
    close(white[0], 1.083268, 1.107261, 0.0)  # verl's n - 1
    close(white[1], -0.746171, -0.740173, -0.704184)
    kept = white[RAGGED == 1].double()
    assert (kept.mean().item(), kept.std().item()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, rel=1e-5))


def test_reinforce_pp_discounts(ppo):
    scored = ScoredRollout(torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3), torch.ones(1))
    close(estimate(ppo("reinforce_pp", "ppo.gamma=0.5"), scored)[0], 0.25, 0.5, 1.0)


def test_reinforce_pp_baseline_whitens_the_distance_from_the_groups_mean(ppo):
    scores = torch.tensor([1.0, -0.5])
    scored = ScoredRollout(token_rewards(scores, torch.zeros(2, 3), RAGGED, 0.0), RAGGED, scores, copies=2)
    found = estimate(ppo("reinforce_pp_baseline"), scored)
    close(found[:, 0], 0.75, -0.75)
    close(whiten(found, RAGGED)[:, 0], 1.095445, -0.730297)


def test_remax_subtracts_the_score_of_the_likeliest_response(ppo):
    rewards, scores = torch.tensor([[0.0, 0.0, 0.8]]), torch.tensor([0.8])
    scored = ScoredRollout(rewards, torch.ones(1, 3), scores, greedy_scores=torch.tensor([0.5]))
    close(estimate(ppo("remax"), scored)[0], 0.3, 0.3, 0.3)


def test_raft_learns_from_the_best_response_to_each_prompt(ppo):
    credit = load_estimator("raft")(rollout(torch.tensor([0.1, 0.9, 0.9, 0.2, 5.0, 4.0, 3.0, 2.0])), ppo("raft"))
    assert credit.trained.nonzero().flatten().tolist() == [1, 4]  # of equal ones the first
    assert credit.advantages.sum(1).tolist() == [0, 3, 0, 0, 3, 0, 0, 0]


def test_raft_may_take_the_best_share_of_all(ppo):
    scores = torch.tensor([0.1, 0.9, 0.9, 0.2, 5.0, 4.0, 3.0, 2.0])
    credit = load_estimator("raft")(rollout(scores), ppo("raft", "ppo.best_share=0.25"))
    assert credit.trained.nonzero().flatten().tolist() == [4, 5]


def test_online_dpo_has_the_gradient_of_the_dpo_loss(ppo):
    keys = ppo("online_dpo")
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(4, 3, generator=generator).requires_grad_()
    reference, mask = torch.randn(4, 3, generator=generator), torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    scores = torch.tensor([0.3, 0.1, -1.0, 2.0])
    sums = ((logprobs - reference) * mask).sum(1)
    margins = torch.stack([sums[0] - sums[1], sums[3] - sums[2]])
    loss = -torch.nn.functional.logsigmoid(keys.kl_coef * margins).mean()
    (expected,) = torch.autograd.grad(loss, logprobs)
    kl = ((logprobs - reference) * mask).detach()
    found = estimate(keys, ScoredRollout(torch.zeros(4, 3), mask, scores, 2, kl=kl))
    torch.testing.assert_close(-found / 4, expected)  # of -sum(A log p) / B


def test_online_dpo_of_equal_scores_prefers_the_first(ppo):
    scores, zeros = torch.tensor([0.5, 0.5]), torch.zeros(2, 1)
    found = estimate(ppo("online_dpo"), ScoredRollout(zeros, torch.ones(2, 1), scores, 2, kl=zeros))
    close(found[:, 0], 0.1, -0.1)


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [(1.0, (0.44, 0.56, 0.35)), (0.95, (0.395375, 0.5425, 0.35)), (0.0, (-0.12, 0.21, 0.35))],
)
def test_gae(gae_lambda, expected):
    rewards, values = torch.tensor([[-0.02, 0.01, 0.95]]), torch.tensor([[0.5, 0.4, 0.6]])
    close(advantages_and_returns(rewards, values, torch.ones(1, 3), 1.0, gae_lambda)[0][0], *expected)


def test_the_critics_own_lambda_is_that_of_its_targets_alone(ppo):
    rewards, values = torch.tensor([[-0.02, 0.01, 0.95]]), torch.tensor([[0.5, 0.4, 0.6]])
    scored = ScoredRollout(rewards, torch.ones(1, 3), torch.ones(1), values=values)
    credit = estimate_gae(scored, ppo("ppo", "ppo.critic_gae_lambda=1.0"))
    close(credit.advantages[0], 0.395375, 0.5425, 0.35)
    close(credit.returns[0], 0.94, 0.96, 0.95)


def test_soft_overlong_punishment():
    lengths = torch.tensor([1, 16, 17, 18, 19, 20, 21])
    close(overlong_penalty(lengths, 20, 4), 0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0)


def test_a_score_that_is_not_a_number_makes_its_group_differ():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, math.nan, math.nan])
    assert varies(scores, 2).tolist() == [False, True, True]
    close(other_means(torch.tensor([1.0, 2.0, 6.0]), 3), 4.0, 3.5, 1.5)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "gae"])
def test_padding_has_no_advantage(ppo, name):
    algorithm = {"reinforce": "reinforce_pp"}.get(name, name)
    mask, scores = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]), torch.tensor([1.0, 2.0, -1.0, 3.0])
    rewards = torch.where(mask.bool(), token_rewards(scores, torch.zeros(4, 3), mask, 0.0), torch.nan)
    scored = ScoredRollout(rewards, mask, scores, 2, greedy_scores=scores, kl=torch.zeros(4, 3))
    found = estimate(ppo(algorithm), scored)
    assert torch.isfinite(found).all() and (found[mask == 0] == 0).all()
