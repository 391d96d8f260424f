import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.kl import AdaptiveKL, FixedKL, k1, k2, k3

logprobs = st.floats(-50.0, 0.0)


def test_estimators_of_a_hand_case():
    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    assert k1(policy, reference).tolist() == [1.0, -1.0]
    torch.testing.assert_close(k3(policy, reference), torch.tensor([math.exp(-1), math.e - 2]))


@pytest.mark.parametrize(
    ("difference", "second", "third"), [(0.2, 0.02, 0.0187308), (-0.1, 0.005, 0.0051709), (0.3, 0.045, 0.0408182)]
)
def test_estimators_of_small_differences(difference, second, third):
    found = [estimator(torch.tensor(difference), torch.tensor(0.0)).item() for estimator in (k1, k2, k3)]
    assert found == pytest.approx([difference, second, third], abs=1e-6)


def test_as_a_loss_k2_has_the_gradient_of_the_kl_and_k1_none():
    logits, target = torch.tensor([0.3, -1.0, 0.8], requires_grad=True), torch.tensor([0.2, 0.5, 0.3])
    log_p, log_q = logits.log_softmax(0), target.log()
    (exact,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits, retain_graph=True)
    p = log_p.detach().exp()  # samples of the policy, each as often as it is drawn
    found = [torch.autograd.grad((p * loss(log_p, log_q)).sum(), logits, retain_graph=True)[0] for loss in (k1, k2, k3)]
    torch.testing.assert_close(found[0], torch.zeros(3))
    torch.testing.assert_close(found[1], exact)
    torch.testing.assert_close(found[2], p - target)  # of KL(reference || policy)


@given(logprobs, logprobs)
def test_k3_is_never_negative_and_zero_where_both_agree(policy, reference):  # row 18
    p, q = torch.tensor(policy, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    assert k3(p, q) >= 0.0
    assert k3(p, p) == 0.0


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)), min_size=2, max_size=6))
def test_both_estimators_average_to_the_exact_kl(weights):  # row 18
    p, q = torch.tensor(weights, dtype=torch.float64).unbind(1)
    p, q = p / p.sum(), q / q.sum()
    exact = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    for estimator in (k1, k3):
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(exact, abs=1e-12)


def test_k3_does_not_overflow():
    assert torch.isfinite(k3(torch.tensor([-1000.0]), torch.tensor([0.0]))).all()


def test_fixed_coefficient_stays():
    controller = FixedKL(0.05)
    controller.update(kl_sequence=1e6, sequences=512)
    assert controller.coef == 0.05


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 512 / 10_000),
        (5.4, 1 - 0.1 * 512 / 10_000),
        (7.2, 1 + 0.2 * 512 / 10_000),
        (1e9, 1 + 0.2 * 512 / 10_000),  # the error is cut to 20 %
        (0.0, 1 - 0.2 * 512 / 10_000),
        (-3.0, 1 - 0.2 * 512 / 10_000),  # k1 can be negative
    ],
)
def test_adaptive_coefficient_follows_the_kl_per_sequence(kl, factor):  # row 19
    controller = AdaptiveKL(0.1, target=6.0, horizon=10_000)
    controller.update(kl_sequence=kl, sequences=512)
    assert controller.coef == pytest.approx(0.1 * factor)


def test_adaptive_coefficient_steers_towards_its_target():  # row 19
    """A policy whose KL falls as the coefficient rises settles at the target."""
    controller = AdaptiveKL(0.01, target=6.0, horizon=10_000)
    for _ in range(400):
        controller.update(kl_sequence=1.2 / controller.coef, sequences=512)
    assert 1.2 / controller.coef == pytest.approx(6.0, rel=0.01)


def test_controller_state_survives_a_checkpoint():  # row 19
    saved, restored = AdaptiveKL(0.1, 6.0, 10_000), AdaptiveKL(0.1, 6.0, 10_000)
    for kl in (9.0, 2.0, 30.0):
        saved.update(kl, 512)
    assert saved.coef != 0.1
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    for controller in (saved, restored):
        controller.update(6.3, 512)
    assert restored.coef == saved.coef
