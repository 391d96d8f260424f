"""Forward passes over prompts and responses: [B, T] sequences whose last R columns are the responses."""

from typing import Any

from torch import Tensor

from rlhf.algo.logprobs import token_logprobs
from rlhf.models.heads import last_token, model_inputs


def response_logprobs(engine: Any, ids: Tensor, mask: Tensor, responses: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the response tokens and entropies of their distributions, [B, R] in float32 and nats.

    Logits are computed for the responses only.
    """
    inputs = model_inputs(engine, ids, mask)
    logits = engine(**inputs, use_cache=False, logits_to_keep=responses + 1).logits[:, :-1]
    return token_logprobs(logits, inputs["input_ids"][:, -responses:], temperature)


def response_values(engine: Any, ids: Tensor, mask: Tensor, responses: int) -> Tensor:
    """The critic's value of the state before each response token, [B, R] in float32."""
    outputs: Tensor = engine(**model_inputs(engine, ids, mask))
    return outputs[:, -responses - 1 : -1]


def response_scores(engine: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The reward model's score at each sequence's last real token, [B] in float32."""
    outputs: Tensor = engine(**model_inputs(engine, ids, mask))
    # Left padding counts as length here: the last real token's column is the last column whose mask is 1.
    columns = mask.size(1) - mask.flip(1).argmax(dim=1)
    return last_token(outputs, columns)
