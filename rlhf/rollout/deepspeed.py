"""Rollouts by DeepSpeed's own hybrid engine, for comparison: transformers' generate on the kernels that it puts in."""

from typing import Any

import numpy as np

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer
from rlhf.rollout.base import Responses
from rlhf.rollout.hf import generate as plain_generate


def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts. An engine that learns has DeepSpeed's kernels in evaluation mode (engine/zero.py makes sure of
    it), and its `generate`; one that only reads, as the reference, has plain ones."""
    return plain_generate(engine, prompts, uniforms, tokenizer, rollout)
