"""Losses of reward models. Each is a sum over pairs, weighted, and is divided by a count of the global batch by its caller.
P pairs, T tokens, K responses of one prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_loss(
    chosen: Tensor, rejected: Tensor, weights: Tensor, margins: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """Bradley-Terry loss of pairs [P], -log sigmoid(chosen - rejected - margin) (arXiv 2203.02155, eq. 1; arXiv 2307.09288,
    eq. 2). With `label_smoothing` e, that of the labels as they are counts 1 - e, and that of swapped labels e."""
    gap = chosen.float() - rejected.float() - margins
    loss = -F.logsigmoid(gap)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-gap)
    return (loss * weights).sum()


def center_penalty(chosen: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
    """Return (chosen + rejected)^2 of pairs [P], which keeps scores near 0 (arXiv 2312.09244, section 2)."""
    return ((chosen.float() + rejected.float()) ** 2 * weights).sum()


def token_wise_loss(chosen: Tensor, rejected: Tensor, starts: Tensor, ends: Tensor, weights: Tensor) -> Tensor:
    """DeepSpeed-Chat's loss of pairs [P]: -log sigmoid of the difference of the outputs [P, T] at the same place, mean over
    the places from the first token that differs, `starts` [P], to the longer text's end, `ends` [P], the padding of the
    shorter text among them (training/utils/model/reward_model.py)."""
    places = torch.arange(chosen.size(1), device=chosen.device)
    span = ((places >= starts[:, None]) & (places < ends[:, None])).float()
    loss = -F.logsigmoid(chosen.float() - rejected.float()) * span
    return (loss.sum(dim=1) / span.sum(dim=1).clamp(min=1) * weights).sum()


def plackett_luce_loss(ranked: Tensor) -> Tensor:
    """Negative log-likelihood of an order of K responses, best first, given their scores [K]: of each but the last to be
    chosen among those that are left (arXiv 2301.11270, K-wise). Of two it is Bradley-Terry's."""
    left = ranked.float().flip(0).logcumsumexp(0).flip(0)
    return (left - ranked.float())[:-1].sum()
