"""Rollouts by DeepSpeed's own hybrid engine, for comparison: transformers' generate on the kernels that it puts in."""

from typing import Any

import numpy as np

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer
from rlhf.rollout.base import Responses
from rlhf.rollout.hf import generate as plain_generate
from rlhf.runtime.compat.deepspeed import has_inference_kernels


def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts. An engine that learns has DeepSpeed's kernels in evaluation mode, and its `generate`; one that
    only reads, as the reference, has plain ones. Raises ConfigError for an engine that was made for other rollouts."""
    learns = any(parameter.requires_grad for parameter in engine.module.parameters())
    if learns and not has_inference_kernels(engine):
        problem = "the actor was made without DeepSpeed's kernels"
        raise ConfigError("rollout.engine", "deepspeed", problem, "begin with rollout=deepspeed")
    return plain_generate(engine, prompts, uniforms, tokenizer, rollout)
