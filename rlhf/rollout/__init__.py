"""Samplers, each an object with the methods of `rlhf.rollout.base.Sampler`; `rollout.engine` names one."""

from typing import Any

from rlhf.catalog.sampler import load_sampler
from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.engine.gather import is_sharded
from rlhf.rollout.base import KeepsMemory, Sampler
from rlhf.rollout.tensor_parallel import TensorParallelSampler


def create_sampler(engine: Any, tokenizer: Tokenizer, rollout: Rollout, longest_prompt: int = 0) -> Sampler:
    """Create the sampler that `rollout.engine` names, for a DeepSpeed engine. One that keeps memory for later rollouts is
    told of prompts of up to `longest_prompt` tokens, where that is known (its attribute of this name)."""
    kind: type[Sampler] = load_sampler(rollout.engine)
    if rollout.tensor_parallel > 1 and is_sharded(engine):
        return TensorParallelSampler(engine, tokenizer, rollout, kind)
    sampler = kind(engine, tokenizer, rollout)
    if isinstance(sampler, KeepsMemory):
        sampler.longest_prompt = longest_prompt
    return sampler
