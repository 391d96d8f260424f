"""Log-probabilities of tokens: one function for the old policy, the new one and the reference."""

from typing import Any

import torch
from torch import Tensor

# Tokens whose logits are held in float32 at once: 1024 x 50k x 4 bytes = 200 MB.
CHUNK = 1024


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    temperature: float,
    at: Tensor | None = None,
    entropies: bool = True,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, both of `tokens`' shape, in float32 and nats.

    `logits` [..., V], in any format, are those that predict `tokens`, or of those the ones whose indices, with all but the
    last dimension flattened, `at` holds; they are divided by `temperature`. Work goes in chunks, in the backward pass too,
    so that no float32 tensor of the logits' size exists. Without `entropies` they are 0; with `entropy_learns`
    they have a gradient, as log-probabilities do.
    """
    index = None if at is None else at.flatten()
    logprobs, entropy = LogProbs.apply(
        logits.flatten(0, -2), tokens.flatten(), temperature, index, entropies, entropy_learns
    )
    return logprobs.view_as(tokens), entropy.view_as(tokens)


class LogProbs(torch.autograd.Function):
    """`token_logprobs` for [N, V] logits; for the backward pass it keeps the logits as they are, and a number per token."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        tokens: Tensor,
        temperature: float,
        at: Tensor | None,
        entropies: bool,
        entropy_learns: bool,
    ) -> tuple[Tensor, Tensor]:
        """Both [A]."""
        logprobs = torch.empty(tokens.numel(), device=logits.device)
        entropy = torch.zeros_like(logprobs)
        for part in chunks(tokens.numel()):
            scaled = rows(logits, part, at).float() / temperature
            logprobs[part], found = chunk_logprobs(scaled, tokens[part], entropies)
            entropy[part] = found
        ctx.save_for_backward(logits, tokens, at, logprobs, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        if not entropy_learns:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient with respect to the logits. Of a token's log-probability it is one at the token's own logit,
        less the probabilities at all of them; of the entropy H it is -p (log p + H); over the temperature."""
        logits, tokens, at, logprobs, entropy = ctx.saved_tensors
        found = torch.empty_like(logits) if at is None else torch.zeros_like(logits)
        gradient = torch.zeros_like(logprobs) if gradient is None else gradient
        for part in chunks(tokens.numel()):
            scaled, own = rows(logits, part, at).float() / ctx.temperature, tokens[part, None]
            weight = gradient[part, None] / ctx.temperature
            normaliser = scaled.gather(1, own) - logprobs[part, None]
            log_softmax = scaled.sub_(normaliser)
            extra = None
            if of_entropy is not None:
                extra = of_entropy[part, None] / ctx.temperature * (log_softmax + entropy[part, None])
                extra *= log_softmax.exp()
            change = log_softmax.exp_().mul_(-weight).scatter_add_(1, own, weight)
            change = change if extra is None else change.sub_(extra)
            found[part if at is None else at[part]] = change.to(found.dtype)
        return found, None, None, None, None, None


def chunks(count: int) -> list[slice]:
    """Consecutive parts of so many tokens."""
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]


def rows(logits: Tensor, part: slice, at: Tensor | None) -> Tensor:
    """Return the logits of a part of the tokens."""
    return logits[part] if at is None else logits[at[part]]


def chunk_logprobs(scaled: Tensor, tokens: Tensor, entropies: bool) -> tuple[Tensor, Tensor | float]:
    """Compute log-probabilities of [N] tokens, and entropies or 0, from float32 logits [N, V] over the temperature."""
    log_softmax = torch.log_softmax(scaled, dim=-1)
    logprobs = log_softmax.gather(-1, tokens[:, None]).squeeze(-1)
    return logprobs, -(log_softmax.exp() * log_softmax).sum(-1) if entropies else 0.0
