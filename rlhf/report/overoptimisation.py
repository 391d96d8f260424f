"""How the gold reward rises and then falls as a policy moves away from its reference, in the forms of Gao et al.
(arXiv 2210.10760), fitted.

With d = sqrt(KL(policy || reference)), KL in nats per response, the gain in gold reward over the reference is
d (alpha - beta log d) under reinforcement learning and d (alpha - beta d) for the best of n.
Both are linear in alpha and beta, so they are fitted by least squares.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlhf.report.statistics import LEVEL, Array

Form = Literal["logarithmic", "linear"]
RESAMPLES, SEED = 1000, 0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The evaluations of one seed: KL to the reference in nats [n], all above 0, the gain in gold reward [n], and the
    standard error of a gain over prompts."""

    kl: Array
    gain: Array
    error: float = 0.0


@dataclass(frozen=True)
class Bounded:
    """A fitted number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A fitted form: its coefficients, and the KL in nats at which it turns, infinite where it does not."""

    form: Form
    alpha: Bounded
    beta: Bounded
    turn: Bounded


def fit_form(trajectories: list[Trajectory], form: Form) -> Fit:
    """Fit a form to all evaluations of some seeds.

    Intervals are percentiles of fits to resampled data: seeds are drawn with replacement, and each gain is shifted by a
    normal number of its standard error. They hold for the form; that the form holds they do not say.

    Args:
        trajectories: The seeds' evaluations, at least two in all at different KL.
        form: `logarithmic`, of a policy that is trained, or `linear`, of best-of-n.

    Returns:
        The fit, with intervals of statistics.LEVEL.
    """
    random = np.random.default_rng(SEED)
    moments = [measure_moments(trajectory, form) for trajectory in trajectories]
    squares, products, roots = (np.stack(parts) for parts in zip(*moments, strict=True))
    errors = np.array([trajectory.error for trajectory in trajectories])
    drawn = random.integers(0, len(trajectories), (RESAMPLES, len(trajectories)))
    # Of gains with normal errors, the products with the design have errors of this covariance.
    noise = np.einsum("rsji,rsj->rsi", roots[drawn], random.standard_normal((*drawn.shape, 2))) * errors[drawn][..., None]
    found = solve(squares[drawn].sum(axis=1), (products[drawn] + noise).sum(axis=1), form)
    low, high = np.quantile(found, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2), axis=0, method="nearest")
    (best,) = solve(squares.sum(axis=0)[None], products.sum(axis=0)[None], form)
    alpha, beta, turn = (
        Bounded(float(value), float(least), float(most)) for value, least, most in zip(best, low, high, strict=True)
    )
    return Fit(form, alpha, beta, turn)


def measure_moments(trajectory: Trajectory, form: Form) -> tuple[Array, Array, Array]:
    """Return of a seed's design X [n, 2] and gains y [n] what least squares needs: X'X [2, 2], X'y [2], and a root R of
    X'X = R'R [2, 2]."""
    distance = np.sqrt(trajectory.kl)
    design = np.stack([distance, -distance * slope(distance, form)], axis=1)
    root: Array = np.linalg.qr(design).R
    return design.T @ design, design.T @ trajectory.gain, root


def solve(squares: Array, products: Array, form: Form) -> Array:
    """Return alpha, beta and the KL at which the form turns, [fits, 3], of the least squares with these X'X [fits, 2, 2],
    X'y [fits, 2]."""
    coefficients = np.einsum("fij,fj->fi", np.linalg.pinv(squares, rcond=1e-13, hermitian=True), products)
    turns = [turning_point(float(alpha), float(beta), form) for alpha, beta in coefficients]
    return np.column_stack([coefficients, turns])


def slope(distance: Array, form: Form) -> Array:
    """Return what beta is multiplied by in the brackets of a form: log d or d."""
    return np.log(distance) if form == "logarithmic" else distance


def turning_point(alpha: float, beta: float, form: Form) -> float:
    """Return the KL at which a form has its greatest gain: infinite where it rises for ever, 0 where it falls from the
    start."""
    if beta <= 0:
        return float("inf")
    if form == "linear":
        return float(max(alpha, 0.0) / (2 * beta)) ** 2
    return float(np.exp(min(2 * (alpha / beta - 1), 700.0)))


def predict(fit: Fit, kl: Array) -> Array:
    """Return the gains [n] that a fit has at some KL [n] above 0."""
    distance = np.sqrt(kl)
    gain: Array = distance * (fit.alpha.value - fit.beta.value * slope(distance, fit.form))
    return gain
