"""Generation engines behind one small protocol: `generate(engine, prompts, uniforms, tokenizer, rollout) -> Responses`."""

from contextlib import nullcontext
from typing import Any

import numpy as np

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer
from rlhf.engine.gather import KEPT, is_sharded
from rlhf.rollout.base import Generate, Responses
from rlhf.rollout.deepspeed import generate as deepspeed_generate
from rlhf.rollout.hf import generate as hf_generate
from rlhf.rollout.hybrid import DECODERS
from rlhf.rollout.hybrid import generate as hybrid_generate
from rlhf.rollout.paged import generate as paged_generate
from rlhf.rollout.tensor_parallel import SHARED
from rlhf.rollout.tensor_parallel import generate as in_groups

ENGINES: dict[str, Generate] = {
    "hf": hf_generate,
    "hybrid": hybrid_generate,
    "paged": paged_generate,
    "deepspeed": deepspeed_generate,
}


def release_cache(engine: Any) -> None:
    """Free what is kept for an engine's next rollout: there is none to come."""
    for kept in (DECODERS, SHARED, KEPT):
        kept.pop(engine.module, None)


def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer a batch of prompts with the weights of a DeepSpeed engine.

    `uniforms` [B, max_new_tokens] are the numbers that decide each sample's tokens, so that the same sample gets the same
    response in whatever batch, engine or rank.
    """
    engine.eval()
    sample = ENGINES[rollout.engine]
    with getattr(engine, "off", nullcontext)():  # a model whose adapters are to be off
        if rollout.tensor_parallel > 1 and is_sharded(engine):
            return in_groups(engine, prompts, uniforms, tokenizer, rollout, sample)
        return sample(engine, prompts, uniforms, tokenizer, rollout)
