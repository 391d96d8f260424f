"""`ppo.offload_idle` on the simulated GPU: models that have nothing to do are in pinned host memory during rollouts."""

from types import SimpleNamespace

import pytest
import torch
from support.gpusim import CUDA, GpuError, SimulatedGPU, move_to_gpu, needs_gpusim
from support.simulated_rollouts import (
    SMALL,
    assert_same_rollouts,
    ragged_prompts,
    roll_out,
    sharp_policy,
    simulated_engine,
)

from rlhf.engine import offload
from rlhf.engine.offload import OffloadedEngine
from rlhf.rollout import create_sampler

pytestmark = needs_gpusim
WIDTH = 600  # its copies have pieces of several sizes
# The host waits for copies twice in a round: before memory is given back, and before another stream may read it.
WAIT = ("runtime/device.py synchronize", "synchronize")


def learning_engine(width=WIDTH):
    """What is put aside of an engine that learns: weights in one piece, as ZeRO lays them, master weights and moments."""
    torch.manual_seed(width)
    flat = torch.randn(width * width + width).to(CUDA, torch.bfloat16)
    model = move_to_gpu(torch.nn.Linear(width, width))
    for name, part in zip(("weight", "bias"), flat.split([width * width, width]), strict=True):
        model._parameters[name] = torch.nn.Parameter(part.view_as(model._parameters[name]), False)
    master = flat.float()
    state = {master: {"exp_avg": torch.randn_like(master), "exp_avg_sq": torch.rand_like(master), "step": 3.0}}
    optimizer = SimpleNamespace(single_partition_of_fp32_groups=[master], optimizer=SimpleNamespace(state=state))
    return SimpleNamespace(module=model, device=CUDA, optimizer=optimizer), [
        flat,
        master,
        *list(state[master].values())[:2],
    ]


def test_idle_models_come_back_as_they_were_and_rollouts_are_the_same(make_config, tokenizer):
    config = make_config("model=opt-tiny", "precision=bf16", "rollout.max_new_tokens=5", *SMALL)
    found = []
    for is_offloaded in (False, True):
        with SimulatedGPU() as gpu:
            actor = simulated_engine(sharp_policy(config, tokenizer))
            given = [ragged_prompts(config.rollout, (20, 9), seed) for seed in range(3)]
            critic, held = learning_engine()
            reference = SimpleNamespace(module=move_to_gpu(torch.nn.Linear(WIDTH, 1)), device=CUDA)
            fixed = [parameter.cpu() for parameter in reference.module.parameters()]
            aside = [OffloadedEngine(critic, frozen=False), OffloadedEngine(reference, frozen=True)]
            sampler, answers = create_sampler(actor, tokenizer, config.rollout), []
            for each in given:
                expected = [tensor.cpu() for tensor in held]
                for model in aside if is_offloaded else ():
                    model.to_host()
                answers += roll_out(sampler, [each], actor.module)
                for model in aside if is_offloaded else ():
                    model.to_device()
                assert all(torch.equal(now.cpu(), before) for now, before in zip(held, expected, strict=True))
                assert all(map(torch.equal, (p.cpu() for p in reference.module.parameters()), fixed))
                for tensor in held:  # an update, so that the next copy is another
                    tensor.mul_(1.5)
            found.append(answers)
            own = {place: count for place, count in gpu.waits.items() if "offload.py" in place[0] or place == WAIT}
            assert own == ({WAIT: 3 * 2 + 1 + 3} if is_offloaded else {})  # what only reads is copied to the host once
    assert_same_rollouts(*found)


def test_memory_that_was_given_back_is_read_by_nobody():
    with SimulatedGPU():
        engine, (flat, *_) = learning_engine()
        weight, graph = engine.module.weight, torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            weight.sum()
        graph.replay()
        aside = OffloadedEngine(engine, frozen=False)
        aside.to_host()
        for read in (weight.sum, flat.cpu, flat.neg_):
            with pytest.raises(GpuError, match="memory that was given back"):
                read()
        with pytest.raises(GpuError, match="a graph reads memory that was given back"):
            graph.replay()


def test_a_stream_of_its_own_reads_what_came_back_after_a_wait_alone(monkeypatch):
    with SimulatedGPU():
        engine, (flat, *_) = learning_engine()
        aside = OffloadedEngine(engine, frozen=False)
        aside.to_host()
        aside.to_device()
        with torch.cuda.stream(torch.cuda.Stream()):
            flat.sum()
        torch.cuda.synchronize()
        aside.to_host()
        monkeypatch.setattr(offload, "synchronize", lambda: None)
        aside.to_device()
        with torch.cuda.stream(torch.cuda.Stream()), pytest.raises(GpuError, match="no event between them"):
            flat.sum()
