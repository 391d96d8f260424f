"""Losses on pairs of responses whose rewards are the policy's own log-probabilities.

Of each of P pairs, c is the chosen response and r the rejected one. l is the sum of a response's log-probabilities under
the policy, T its tokens, end-of-text included, and D = l - l_ref its log-ratio to the reference. Every function returns the
loss of each pair, [P]; the caller sums them and divides by the pairs of the global batch.
rlhf/catalog/preferences.py says what each loss multiplies by beta.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.catalog.preferences import compared_by, weigh_losses
from rlhf.config.schema import Dpo


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of pairs, summed over the responses, all [P] and in nats: the policy's, and the reference's, which
    are 0 where a loss has none; with the responses' tokens. `kl` is KTO's reference point, in nats."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    kl: float = 0.0

    @property
    def chosen_ratio(self) -> Tensor:
        """Log-ratio of the chosen responses to the reference, [P]."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """Log-ratio of the rejected responses to the reference, [P]."""
        return self.rejected - self.reference_rejected

    @property
    def difference(self) -> Tensor:
        """D_c - D_r, [P]."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_difference(self) -> Tensor:
        """D_c / T_c - D_r / T_r, [P]: the difference of means over tokens."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


def dpo(pairs: Logprobs, config: Dpo) -> Tensor:
    """Direct preference optimisation, -log sigmoid(beta (D_c - D_r)) (arXiv 2305.18290, eq. 7)."""
    return -F.logsigmoid(config.beta * pairs.difference)


def cdpo(pairs: Logprobs, config: Dpo) -> Tensor:
    """Conservative DPO: the cross-entropy with labels of which a share `label_smoothing` is wrong (arXiv 2305.18290,
    appendix; "A note on DPO with noisy preferences")."""
    logits, wrong = config.beta * pairs.difference, config.label_smoothing
    return -(1 - wrong) * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)


def robust(pairs: Logprobs, config: Dpo) -> Tensor:
    """DPO whose loss is unbiased where a share `label_smoothing` of the labels is wrong (arXiv 2403.00409, eq. 9)."""
    logits, wrong = config.beta * pairs.difference, config.label_smoothing
    return (-(1 - wrong) * F.logsigmoid(logits) + wrong * F.logsigmoid(-logits)) / (1 - 2 * wrong)


def ipo(pairs: Logprobs, config: Dpo) -> Tensor:
    """Identity preference optimisation, (d - 1 / (2 beta))^2 (arXiv 2310.12036, eq. 17), where d is the difference of mean
    log-ratios per token, or, with `ipo_sums`, of their sums."""
    difference = pairs.difference if config.ipo_sums else pairs.mean_difference
    return (difference - 1 / (2 * config.beta)) ** 2


def hinge(pairs: Logprobs, config: Dpo) -> Tensor:
    """Hinge loss, max(0, 1 - beta (D_c - D_r)) (SLiC-HF, arXiv 2305.10425, with the reference's log-ratios)."""
    return torch.relu(1 - config.beta * pairs.difference)


def dpo_norm(pairs: Logprobs, config: Dpo) -> Tensor:
    """DPO on mean log-ratios per token (Tulu 3, arXiv 2411.15124, section 5)."""
    return -F.logsigmoid(config.beta * pairs.mean_difference)


def label_losses(ratios: Tensor, desirable: Tensor, kl: float, config: Dpo) -> Tensor:
    """Kahneman-Tversky optimisation of single responses, whose log-ratios to the reference are `ratios` D [B] and of which
    those that are desirable are marked, [B]: of a desirable one w_D (1 - sigmoid(beta (D - z))), of another one
    w_U (1 - sigmoid(beta (z - D))), where z is `kl` in nats (arXiv 2402.01306, eq. 7). Returns [B]."""
    above = config.beta * (ratios - kl)
    liked, disliked = config.desirable_weight * torch.sigmoid(-above), config.undesirable_weight * torch.sigmoid(above)
    return torch.where(desirable, liked, disliked)


def kto(pairs: Logprobs, config: Dpo) -> Tensor:
    """Kahneman-Tversky optimisation of a pair's two responses as records of their own: the mean of their losses."""
    good = torch.ones_like(pairs.chosen, dtype=torch.bool)
    desirable = label_losses(pairs.chosen_ratio, good, pairs.kl, config)
    return (desirable + label_losses(pairs.rejected_ratio, ~good, pairs.kl, config)) / 2


def simpo(pairs: Logprobs, config: Dpo) -> Tensor:
    """SimPO, -log sigmoid(beta (l_c / T_c - l_r / T_r) - gamma), without a reference (arXiv 2405.14734, eq. 6)."""
    return -F.logsigmoid(config.beta * pairs.mean_difference - config.simpo_gamma)


def orpo(pairs: Logprobs, config: Dpo) -> Tensor:
    """Odds-ratio preference optimisation without a reference: the chosen response's negative log-likelihood per token
    and beta times -log sigmoid of the difference of log-odds (arXiv 2403.07691, eqs. 6 and 7)."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    return -chosen - config.beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; a probability of 1 counts as the nearest one below it."""
    below_one = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))


def cpo(pairs: Logprobs, config: Dpo) -> Tensor:
    """Contrastive preference optimisation, -log sigmoid(beta (l_c - l_r)), without a reference (arXiv 2401.08417, eq. 6);
    its likelihood term is `nll_coef`."""
    return -F.logsigmoid(config.beta * (pairs.chosen - pairs.rejected))


LOSSES: dict[str, Callable[[Logprobs, Dpo], Tensor]] = {
    "dpo": dpo,
    "cdpo": cdpo,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "dpo_norm": dpo_norm,
    "kto": kto,
    "simpo": simpo,
    "orpo": orpo,
    "cpo": cpo,
}


def pair_losses(pairs: Logprobs, config: Dpo) -> Tensor:
    """Return the loss of each pair, [P]: that of `config.loss`, those of `config.mix` times their weights, and `nll_coef`
    times the chosen response's negative log-likelihood per token (arXiv 2404.19733, eq. 1)."""
    losses = sum((weight * LOSSES[loss](pairs, config) for loss, weight in weigh_losses(config).items()), torch.zeros(()))
    return losses - config.nll_coef * pairs.chosen / pairs.chosen_tokens if config.nll_coef else losses


def implicit_rewards(pairs: Logprobs, config: Dpo) -> tuple[Tensor, Tensor]:
    """Return the rewards that the policy stands for, of the chosen and of the rejected responses, [P]: beta times what the
    loss compares."""
    chosen, rejected, compared = pairs.chosen_ratio, pairs.rejected_ratio, compared_by(config.loss, config)
    if compared in ("mean log-ratios", "mean log-probabilities", "log-odds"):
        chosen, rejected = chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    if compared == "log-odds":
        chosen, rejected = log_odds(chosen), log_odds(rejected)
    return config.beta * chosen, config.beta * rejected
