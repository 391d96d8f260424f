"""Floating-point operations of a transformer, counted over real tokens. Pure: no torch.

A multiply-add is two operations. Per token and layer a forward pass does 2 operations per weight of the four attention
matrices (4 H^2) and of the feed-forward ones (2 H F for the families with one up- and one down-projection), and 4 H for
every position it attends to (scores and their product with the values; the full square is computed, as the usual counts
have it: arXiv 2104.04473, appendix). The head costs 2 E V for every token whose logits are taken; a narrower embedding E
is projected in and out.
"""

from collections.abc import Iterable

from rlhf.config.schema import Model


def per_token(model: Model) -> int:
    """Operations of a forward pass per token, without attention scores and head."""
    matrices = model.layers * (4 * model.width**2 + 2 * model.width * model.ffn)
    projections = 2 * model.width * model.embedding if model.embedding != model.width else 0
    return 2 * (matrices + projections)


def per_pair(model: Model) -> int:
    """Operations per pair of a token and a position it attends to."""
    return 4 * model.layers * model.width


def forward_flops(model: Model, lengths: Iterable[int], logit_tokens: int) -> int:
    """A forward pass over sequences of these lengths, with logits of `logit_tokens` tokens in all (0 for a scorer)."""
    lengths = list(lengths)
    body = per_token(model) * sum(lengths) + per_pair(model) * sum(length**2 for length in lengths)
    return body + 2 * model.embedding * model.vocabulary * logit_tokens


def training_flops(forward: int, checkpointing: bool) -> int:
    """Forward and backward pass: three times the forward pass, four with recomputed activations."""
    return forward * (4 if checkpointing else 3)


def generation_flops(model: Model, prompts: Iterable[int], responses: Iterable[int]) -> int:
    """Sampling responses of these lengths after prompts of these lengths, with a key-value cache: the prompt at once,
    then one token at a time (the last one is never fed back)."""
    total = 0
    for prompt, response in zip(prompts, responses, strict=True):
        fed = response - 1
        attended = prompt**2 + fed * prompt + fed * (fed + 1) // 2
        total += per_token(model) * (prompt + fed) + per_pair(model) * attended
        total += 2 * model.embedding * model.vocabulary * response
    return total
