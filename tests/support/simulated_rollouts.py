"""Rollouts of small models on the simulated GPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from rlhf.data.tokens import prompt_batch
from rlhf.models.load import new_policy
from support.gpusim import CUDA, move_to_gpu

SMALL = "model.hidden_size=32", "model.num_attention_heads=4", "model.head_dim=8", "model.intermediate_size=64"


def simulated_engine(model, device=CUDA):
    """What samplers ask of an engine, around a model that is put on a device."""
    model = model.eval().requires_grad_(False)
    return SimpleNamespace(
        module=move_to_gpu(model) if device == CUDA else model, device=device, world_size=1,
        zero_optimization_stage=lambda: 0, eval=model.eval,
    )  # fmt: skip


def sharp_policy(config, tokenizer, factor=3.0):
    """A random policy that says more clearly than random weights do what comes next."""
    model = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    scale_weights(model, factor)
    return model


@torch.no_grad()
def scale_weights(model, factor):
    """Multiply a model's matrices, in place."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(factor)


def ragged_prompts(rollout, lengths, seed=0, device=CUDA, limits=None, copies=1):
    """Prompts of these lengths, and the numbers that decide their responses."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(5, 300, length).tolist() for length in lengths]
    count = len(ids) * copies
    batch = prompt_batch(ids, list(range(count)), 0, device, copies)
    draws = torch.from_numpy(generator.random((count, rollout.max_new_tokens), dtype=np.float32)).to(device)
    return replace(batch, limits=None if limits is None else torch.tensor(limits, device=device)), draws


def roll_out(sampler, batches, model):
    """What a sampler answers to batches of prompts and draws, on the host. The model's weights change between them."""
    found = []
    for number, (prompts, draws) in enumerate(batches):
        if number:
            scale_weights(model, 0.9)
        sampler.sync()
        responses = sampler.generate(prompts, draws)
        found.append([part.cpu() for part in (responses.tokens, responses.lengths, responses.ended, responses.logprobs)])
    return found


def assert_same_rollouts(found, expected):
    """Rollouts are equal to the bit: tokens, lengths, ends and log-probabilities."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        for name, left, right in zip(("tokens", "lengths", "ended", "logprobs"), one, other, strict=True):
            assert torch.equal(left, right), f"rollout {number}: {name} differ"
