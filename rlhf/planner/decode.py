"""What a device must read to sample, in bytes: in small batches this, not arithmetic, is what a decode step takes. Pure."""

from collections.abc import Iterable

from rlhf.config.schema import Model
from rlhf.planner.memory import bytes_per_element, cache_bytes_per_token


def decoded_weight_bytes(model: Model, dtype: str) -> int:
    """Bytes of the weights that a decode step reads: all of them, but of an embedding that is not the head as well a few
    rows only."""
    rows_only = 0 if model.tie_word_embeddings else model.vocab_size * model.word_embed_proj_dim
    return (model.num_parameters - rows_only) * bytes_per_element(dtype)


def decode_bytes(model: Model, dtype: str, prompts: Iterable[int], responses: Iterable[int]) -> int:
    """Bytes that sampling responses of r tokens after prompts of p tokens reads, all rows together:

        W max(r) + C sum over rows (p r + r (r - 1) / 2)

    W are the bytes of the weights, read once per step, whatever the number of rows; C those of a token in the cache. Step t
    of a row reads its p + t - 1 tokens so far, and nothing once the row has ended. The prompts' own pass counts as step 1.
    """
    steps = cached = 0
    for prompt, response in zip(prompts, responses, strict=True):
        steps = max(steps, response)
        cached += prompt * response + response * (response - 1) // 2
    return decoded_weight_bytes(model, dtype) * steps + cache_bytes_per_token(model, dtype) * cached
