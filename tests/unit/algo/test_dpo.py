"""The losses on pairs: cases computed by hand, and what holds of each."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.dpo import LOSSES, Logprobs, implicit_rewards, label_losses, log_odds, pair_losses
from rlhf.catalog.preferences import COMPARED
from rlhf.config.keys import keys_of
from rlhf.config.schema import Config, Dpo

# A pair whose log-ratios to the reference are 1 (chosen, 5 tokens) and -3 (rejected, 7 tokens).
PAIR = Logprobs(*(torch.tensor([value]) for value in (-10.0, -21.0, -11.0, -18.0, 5.0, 7.0)))
WITHOUT = replace(PAIR, reference_chosen=torch.zeros(1), reference_rejected=torch.zeros(1))
SETTINGS = {
    "beta": 0.1, "label_smoothing": 0.1, "ipo_sums": False, "simpo_gamma": 0.5, "nll_coef": 0.0, "desirable_weight": 1.0,
    "undesirable_weight": 1.0, "mix": None,
}  # fmt: skip
finite = st.floats(-30, 30)


def config(loss, **changes):
    """The group `dpo`, of which the losses read these keys alone."""
    found = Dpo.__new__(Dpo)
    found.__dict__.update(SETTINGS | {"loss": loss} | changes)
    return found


@pytest.mark.parametrize(
    ("loss", "changes", "pair", "expected"),
    [
        ("dpo", {}, PAIR, 0.513015),
        ("cdpo", {}, PAIR, 0.553015),
        ("robust", {}, PAIR, 0.463015),
        ("hinge", {}, PAIR, 0.6),
        ("ipo", {}, PAIR, 19.109388),
        ("ipo", {"ipo_sums": True}, PAIR, 1.0),
        ("dpo_norm", {}, PAIR, 0.662212),
        ("simpo", {"beta": 2.0, "simpo_gamma": 1.0}, WITHOUT, 0.313262),
        ("simpo", {"beta": 2.5, "simpo_gamma": 1.375}, WITHOUT, 0.281150),
        ("cpo", {"nll_coef": 1.0}, WITHOUT, 0.287335 + 2.0),
        ("kto", {}, replace(PAIR, kl=0.5), 0.450443),
        ("kto", {"undesirable_weight": 0.0}, replace(PAIR, kl=0.5), 0.487503 / 2),
        ("kto", {"desirable_weight": 0.0}, replace(PAIR, kl=0.5), 0.413382 / 2),
        ("dpo", {"mix": {"hinge": 0.5, "kto": 2.0}}, replace(PAIR, kl=0.5), 0.513015 + 0.3 + 2 * 0.450443),
    ],
)
def test_cases_computed_by_hand(loss, changes, pair, expected):
    assert pair_losses(pair, config(loss, **changes)).item() == pytest.approx(expected, abs=1e-5)


def test_single_responses_computed_by_hand():
    """A desirable response with the log-ratio 1 to the reference, and an undesirable one with -3; the KL is 0.5."""
    ratios, good = torch.tensor([1.0, -3.0]), torch.tensor([True, False])
    assert label_losses(ratios, good, 0.5, config("kto")).tolist() == pytest.approx([0.487503, 0.413382], abs=1e-5)
    weighted = label_losses(ratios, good, 0.5, config("kto", desirable_weight=2.0, undesirable_weight=0.5))
    assert weighted.tolist() == pytest.approx([2 * 0.487503, 0.413382 / 2], abs=1e-5)


def test_the_odds_ratio():
    means = Logprobs(*(torch.tensor([value]) for value in (-2.0, -3.0, 0.0, 0.0, 1.0, 1.0)))
    assert (log_odds(torch.tensor(-2.0)) - log_odds(torch.tensor(-3.0))).item() == pytest.approx(1.094344, abs=1e-5)
    assert pair_losses(means, config("orpo")).item() == pytest.approx(2.028875, abs=1e-5)
    certain = replace(means, chosen=torch.zeros(1))  # a response whose every token is certain
    assert math.isfinite(pair_losses(certain, config("orpo")).item())


def test_the_configuration_offers_each_loss():
    assert keys_of(Config)["dpo.loss"].choices == tuple(LOSSES) == tuple(COMPARED)


@pytest.mark.parametrize("loss", ["dpo", "cdpo"])
def test_at_the_reference_the_loss_is_log_2(loss):
    same = replace(PAIR, reference_chosen=PAIR.chosen, reference_rejected=PAIR.rejected)
    assert pair_losses(same, config(loss)).item() == pytest.approx(math.log(2))


def test_at_the_reference_the_gradient_is_that_of_the_difference():
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (-10.0, -21.0))
    same = replace(
        PAIR, chosen=chosen, rejected=rejected, reference_chosen=chosen.detach(), reference_rejected=rejected.detach()
    )
    pair_losses(same, config("dpo")).sum().backward()
    assert (chosen.grad.item(), rejected.grad.item()) == (pytest.approx(-0.05), pytest.approx(0.05))


@given(finite, finite, finite, finite)
def test_a_swapped_label_changes_the_loss_by_the_scaled_difference(chosen, rejected, first, second):
    columns = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, first, second, 4.0, 4.0)]
    pair = Logprobs(*columns)
    swapped = Logprobs(columns[1], columns[0], columns[3], columns[2], columns[5], columns[4])
    gap = pair_losses(pair, config("dpo")) - pair_losses(swapped, config("dpo"))
    assert gap.item() == pytest.approx(-0.1 * pair.difference.item(), abs=1e-9)


@given(finite, finite, finite, finite)
def test_the_sides_of_the_implicit_reward_order_a_pair_as_its_loss_does(chosen, rejected, first, second):
    """Where the loss rewards a larger difference without end: the better pair has the larger margin."""
    columns = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, first, second, 4.0, 7.0)]
    better = Logprobs(columns[0] + 1, *columns[1:])
    for loss in ("dpo", "cdpo", "hinge", "dpo_norm", "kto", "simpo", "cpo"):
        margins = []
        for pair in (Logprobs(*columns), better):
            above, below = implicit_rewards(pair, config(loss, label_smoothing=0.0))
            margins.append((above - below).item())
        assert margins[1] > margins[0]
        assert pair_losses(better, config(loss, label_smoothing=0.0)) <= pair_losses(
            Logprobs(*columns), config(loss, label_smoothing=0.0)
        )
