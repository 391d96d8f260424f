"""Log-probabilities of tokens: one function for the old policy, the new one and the reference."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Tokens whose logits are held in float32 at once: 1024 x 50k x 4 bytes = 200 MB.
CHUNK = 1024


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, both [B, R] in float32 and nats.

    `logits` [B, R, V], in any format, are those that predict `tokens` [B, R]; they are divided by `temperature`. Work
    goes in chunks that are recomputed in the backward pass, so that no [B, R, V] float32 tensor exists.
    """
    flat, ids = logits.flatten(0, 1), tokens.flatten()
    parts = []
    for start in range(0, ids.numel(), CHUNK):
        chunk = (flat[start : start + CHUNK], ids[start : start + CHUNK], temperature)
        parts.append(
            checkpoint(chunk_logprobs, *chunk, use_reentrant=False) if logits.requires_grad else chunk_logprobs(*chunk)
        )
    logprobs, entropy = (torch.cat(column).view_as(tokens) for column in zip(*parts, strict=True))
    return logprobs, entropy


def chunk_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`token_logprobs` for [N, V] logits and [N] tokens."""
    log_softmax = torch.log_softmax(logits.float() / temperature, dim=-1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1).detach()
    return log_softmax.gather(-1, tokens[:, None]).squeeze(-1), entropy
