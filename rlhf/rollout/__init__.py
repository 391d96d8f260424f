"""Samplers, each an object with the methods of `rlhf.rollout.base.Sampler`; `rollout.engine` names one."""

from typing import Any

from rlhf.catalog.sampler import load_sampler
from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.engine.gather import is_sharded
from rlhf.rollout.base import Sampler
from rlhf.rollout.tensor_parallel import TensorParallelSampler


def create_sampler(engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> Sampler:
    """Create the sampler that `rollout.engine` names, for a DeepSpeed engine."""
    sampler: type[Sampler] = load_sampler(rollout.engine)
    if rollout.tensor_parallel > 1 and is_sharded(engine):
        return TensorParallelSampler(engine, tokenizer, rollout, sampler)
    return sampler(engine, tokenizer, rollout)
