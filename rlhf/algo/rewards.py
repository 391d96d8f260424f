"""Rewards: sequence scores as PPO sees them, and rewards per token. B responses of at most R tokens; masks are 1 on real
tokens."""

import torch
from torch import Tensor

from rlhf.algo.masked import zero_padding


def shape_scores(scores: Tensor, ended: Tensor, clip: float | None, eos_penalty: float | None, mode: str) -> Tensor:
    """Sequence scores as PPO sees them, [B].

    `ended` [B] tells which responses closed with end-of-text; the others have their score replaced by `eos_penalty`
    (arXiv 2403.17031, detail 16: -1, for scores of mean 0), or the size of `eos_penalty` subtracted (TRL's
    `missing_eos_penalty`), whatever its sign: a penalty never raises a score. Scores are cut to [-clip, clip] first.
    """
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    if eos_penalty is None:
        return scores
    penalised = torch.full_like(scores, eos_penalty) if mode == "replace" else scores - abs(eos_penalty)
    return torch.where(ended, scores, penalised)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float, on_tokens: Tensor | None = None) -> Tensor:
    """Rewards per token, [B, R]: -kl_coef times `kl` (k1: log-probability minus the reference's) on every action, and
    the sequence's score on its last action, end-of-text included (arXiv 2203.02155, eq. 2; arXiv 1909.08593).

    A part of the score may fall `on_tokens` [B, R]; the last action has the rest, so that the sum stays the score, whatever
    was clipped from it or added."""
    rewards = -kl_coef * zero_padding(kl, mask)
    if on_tokens is not None:
        part = zero_padding(on_tokens, mask)
        rewards, scores = rewards + part, scores - part.sum(1)
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    return rewards.scatter_add(1, last[:, None], (scores * (mask.sum(dim=1) > 0))[:, None].to(rewards.dtype))


def overlong_penalty(lengths: Tensor, longest: int, buffer: float) -> Tensor:
    """Return DAPO's soft punishment of long responses, [B], from 0 to -1 (arXiv 2503.14476, eq. 13): it falls in a straight
    line over the last `buffer` of `longest` tokens. Lengths [B] are in tokens."""
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)
