"""Choosing the next token: inverting the distribution's CDF with a number drawn beforehand."""

import torch
from torch import Tensor

from rlhf.config.schema import Rollout


def next_tokens(logits: Tensor, uniforms: Tensor, rollout: Rollout, forbid: int | None = None) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-probability, both [B].

    `logits` [B, V] are divided by the temperature; the log-probability (float32) is that of the whole distribution.
    The token is then drawn from what top-k and top-p leave (or is the likeliest one, if not do_sample): the first, in
    the vocabulary's order, at which the cumulated probability exceeds the row's number in `uniforms` [B]. `forbid` is a
    token that may not be chosen.
    """
    logits = logits.float() / rollout.temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    allowed = logprobs.clone()
    if forbid is not None:
        allowed[:, forbid] = -torch.inf
    if rollout.do_sample:
        tokens = invert_cdf(restrict(allowed, rollout.top_k, rollout.top_p), uniforms)
    else:
        tokens = allowed.argmax(-1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def restrict(logprobs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Log-probabilities [B, V] with all but the `top_k` likeliest tokens and their ties (0: all), and all
    but the fewest likeliest whose probabilities reach `top_p`, at minus infinity. The likeliest token always stays."""
    if 0 < top_k < logprobs.size(-1):
        threshold = logprobs.topk(top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < threshold, -torch.inf)
    if top_p < 1.0:
        ordered, order = torch.softmax(logprobs, dim=-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        drop = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logprobs = logprobs.masked_fill(drop, -torch.inf)
    return logprobs


def invert_cdf(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulated probability of [B, V] first exceeds each row's number in [0, 1), [B].

    The numbers are stretched to the row's total, so that rounding of the sum cannot run past the last token, and a token
    of probability 0 is never chosen.
    """
    cumulated = torch.softmax(logprobs, dim=-1).double().cumsum(-1)
    target = uniforms.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1).clamp(max=logprobs.size(-1) - 1)
