"""Choosing the next token: inverting the distribution's CDF with a number drawn beforehand; and what ends a response."""

import torch
from torch import Tensor

from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates.jinja import find_end_ids

# An id that no tokenizer has: where a response has not begun.
NO_TOKEN = 2**31 - 1


def next_tokens(
    logits: Tensor,
    uniforms: Tensor,
    rollout: Rollout,
    forbid: Tensor | None = None,
    seen: Tensor | None = None,
    where: Tensor | None = None,
    forced: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the next token of each row and its log-probability, both [B].

    `logits` [B, V] are divided by the temperature; the log-probability (float32) is that of the whole distribution, as the
    trainer computes it: before penalties and restrictions. The token is then drawn from what the repetition penalty makes
    of it (for the tokens that are true in `seen` [B, V]) and top-k and top-p leave of it, or is the likeliest one, if not
    do_sample: the first, in the vocabulary's order, at which the cumulated probability exceeds the row's number in
    `uniforms` [B]. `forbid` [E] are tokens that may not be chosen, in the rows that are true in `where` [B] (None: in all);
    `forced` [B] holds tokens that rows take whatever is drawn, and -1 for rows that take what is drawn.
    """
    # [B, V] in float32 is large beside a step's other tensors: none is made that is not needed, nor kept for longer.
    scaled = logits if rollout.temperature == 1.0 else logits.float() / rollout.temperature
    logprobs = torch.log_softmax(scaled, dim=-1, dtype=torch.float32)
    del scaled
    allowed = logprobs
    if seen is not None:
        allowed = penalize_seen(logits.float(), seen, rollout.repetition_penalty) / rollout.temperature
    del logits
    if forbid is not None and where is None and forced is None:
        allowed = allowed.index_fill_(1, forbid, -torch.inf)  # in place: no row takes a token that is forbidden
    elif forbid is not None:
        without = allowed.index_fill(1, forbid, -torch.inf)
        allowed = without if where is None else torch.where(where[:, None], without, allowed)
    if rollout.do_sample:
        tokens = invert_cdf(restrict(allowed, rollout.top_k, rollout.top_p), uniforms)
    else:
        tokens = allowed.argmax(-1)
    if forced is not None:
        tokens = torch.where(forced < 0, tokens, forced)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def penalize_seen(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] with those of the tokens in `seen` divided by the penalty if they are positive, else multiplied by it
    (arXiv 1909.05858, section 4.1, with the sign taken care of as is usual)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def seen_tokens(ids: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """[B, V]: whether a prompt [B, Q] holds a token, padding left out."""
    counts = torch.zeros(ids.size(0), vocabulary, dtype=torch.long, device=ids.device)
    return counts.scatter_add(1, ids.masked_fill(mask == 0, 0), mask).bool()


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
    """Return the token at which the cumulated probability of [B, V] first exceeds each row's number in [0, 1), [B].

    The numbers are stretched to the row's total, so that rounding of the sum cannot run past the last token, and a token
    of probability 0 is never chosen.
    """
    cumulated = torch.softmax(logprobs, dim=-1).double().cumsum_(-1)
    target = uniforms.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1).clamp(max=logprobs.size(-1) - 1)


def end_tokens(tokenizer: Tokenizer, device: torch.device) -> Tensor:
    """Return the tokens that end a response, [E]: the first is the one that a response is made to end with."""
    return torch.tensor(find_end_ids(tokenizer), device=device)


def have_ended(tokens: Tensor, ends: Tensor) -> Tensor:
    """Tell which of the tokens [B] end a response, [B]; `ends` [E] are the tokens that do."""
    return (tokens[:, None] == ends).any(1)


def go_on(tokens: Tensor, ends: Tensor) -> Tensor:
    """Tell which of the tokens [B] end no response, [B]: by one operator where one token alone ends it."""
    return tokens != ends if len(ends) == 1 else ~have_ended(tokens, ends)


class StopTexts:
    """Whether responses end with one of some texts, told from their tokens on their device, however the texts are cut into
    tokens (transformers' StopStringCriteria). A prompt's own end is no part of it."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer, device: torch.device) -> None:
        from transformers import StopStringCriteria

        self.criteria = StopStringCriteria(tokenizer, texts)
        self.window = torch.arange(1 - self.criteria.maximum_token_len, 1, device=device)

    def __call__(self, tokens: Tensor, step: Tensor) -> Tensor:
        """[B] for the first `step` + 1 tokens of [B, R]; `step` is [B], or [1] for all rows."""
        places = step[:, None] + self.window
        last = tokens.gather(1, places.clamp(min=0).expand(len(tokens), -1))
        found: Tensor = self.criteria(torch.where(places < 0, NO_TOKEN, last), None)
        return found
