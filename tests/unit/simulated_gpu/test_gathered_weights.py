"""Rollouts of a model that is sharded, on the simulated GPU: graphs read the gathered weights at their addresses, so that
the buffers stay from rollout to rollout."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support.gpusim import SimulatedGPU, needs_gpusim
from support.simulated_rollouts import (
    SMALL,
    assert_same_rollouts,
    ragged_prompts,
    roll_out,
    sharp_policy,
    simulated_engine,
)

from rlhf.rollout import create_sampler, weights

pytestmark = needs_gpusim


def gather_weights(buffers, parameters):
    """What engine/gather.py does, where each parameter is the whole of itself."""
    if not buffers:
        buffers += [torch.nn.Parameter(parameter.detach().clone(), False) for parameter in parameters]
    for buffer, parameter in zip(buffers, parameters, strict=True):
        buffer.copy_(parameter)


@contextmanager
def held_whole(engine, buffers):
    """Put the buffers in the place of parameters meanwhile, which hold nothing that a rollout may use."""
    parameters = list(engine.module.parameters())
    by_id = dict(zip(map(id, parameters), buffers, strict=True))
    places = [(module._parameters, name) for module in engine.module.modules() for name in module._parameters]
    former = [owner[name] for owner, name in places]
    kept = [parameter.clone() for parameter in parameters]
    for (owner, name), parameter in zip(places, former, strict=True):
        owner[name] = by_id.get(id(parameter))
    for parameter in parameters:
        parameter.fill_(torch.nan)
    yield
    for (owner, name), parameter in zip(places, former, strict=True):
        owner[name] = parameter
    for parameter, copy in zip(parameters, kept, strict=True):
        parameter.copy_(copy)


@pytest.mark.parametrize("release", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_read_gathered_weights_where_they_stay(make_config, tokenizer, monkeypatch, release):
    for name, function in {
        "gather_weights": gather_weights,
        "held_whole": held_whole,
        "fits_whole": lambda _: True,
    }.items():
        monkeypatch.setattr(weights, name, function)
    config = make_config("model=opt-tiny", "precision=bf16", "rollout.max_new_tokens=5", *SMALL)
    found = []
    for stage in (0, 3):
        with SimulatedGPU() as gpu:
            engine = simulated_engine(sharp_policy(config, tokenizer))
            engine.zero_optimization_stage = lambda stage=stage: stage
            given = [ragged_prompts(config.rollout, (20, 9), seed) for seed in range(3)]
            sampler = create_sampler(engine, tokenizer, replace(config.rollout, release_cache=release))
            found.append(roll_out(sampler, given, engine.module))
            assert len(gpu.graphs) == (3 if release else 1)
            assert bool(sampler.weights.buffers) == (stage == 3 and not release)
    assert_same_rollouts(*found)
