"""KL divergence: estimators from samples, and the controllers of its coefficient."""

from torch import Tensor

from rlhf.config.schema import Ppo


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return the unbiased estimator of KL(policy || reference) per token: the difference of log-probabilities, in nats."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return half the squared difference: biased as a number, but its gradient is that of the KL divergence in expectation
    (J. Schulman, Approximating KL Divergence; arXiv 2501.03262)."""
    return 0.5 * (logprobs - reference_logprobs) ** 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return the unbiased, never negative estimator: exp(-k1) - 1 + k1 (J. Schulman, Approximating KL Divergence)."""
    difference = (reference_logprobs - logprobs).clamp(-20.0, 20.0)
    return difference.expm1() - difference


# By their names in `ppo.kl_estimator`.
KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


class FixedKL:
    """A coefficient that stays."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl_sequence: float, sequences: int) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, float]:
        """Return the coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the coefficient."""
        self.coef = state["coef"]


class AdaptiveKL(FixedKL):
    """Moves the coefficient so that the KL per *sequence* nears its target (arXiv 1909.08593, section 2.2)."""

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl_sequence: float, sequences: int) -> None:
        """Multiply by 1 + error * sequences / horizon, the error being cut to 20 % of the target."""
        error = min(max(kl_sequence / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * sequences / self.horizon


def build_kl_controller(ppo: Ppo) -> FixedKL:
    """Build the KL controller that the configuration names."""
    if ppo.kl_controller == "adaptive":
        return AdaptiveKL(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
    return FixedKL(ppo.kl_coef)
