"""Sampling by DeepSpeed's own hybrid engine, for comparison: transformers' generate on the kernels that it puts in."""

from typing import Any

from rlhf.catalog.sampler import deepspeed_problem
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.rollout.hf import HFSampler
from rlhf.runtime.compat.deepspeed import has_inference_kernels


class DeepSpeedSampler(HFSampler):
    """Samples by DeepSpeed's kernels and its `generate`, which an engine that learns has in evaluation mode. An engine that
    only reads, such as the reference, has plain layers.

    Raises:
        ConfigError: the engine learns and was made without the kernels.
    """

    problem = staticmethod(deepspeed_problem)

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> None:
        super().__init__(engine, tokenizer, rollout)
        learns = any(parameter.requires_grad for parameter in engine.module.parameters())
        if learns and not has_inference_kernels(engine):
            problem = "the actor was made without DeepSpeed's kernels"
            raise ConfigError("rollout.engine", "deepspeed", problem, "begin with rollout=deepspeed")
