"""What a rank is planned to hold of its node's main memory."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf.catalog.role import Role
from rlhf.config.derive import Batches
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, training_engine
from rlhf.planner import host
from rlhf.planner.host import host_bytes, offloaded_bytes, pinned_bytes, round_to_power
from rlhf.planner.memory import GIB
from rlhf.runtime.compat.deepspeed import master_weights, optimizer_moments
from rlhf.runtime.distributed import start

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "taken"), [(0, 0), (1, 1), (3, 4), (4, 4), (33 * GIB, 64 * GIB), (0.7 * MIB, MIB), (64 * GIB, 64 * GIB)]
)
def test_a_tensor_takes_a_power_of_two(size, taken):
    assert round_to_power(size) == taken


@pytest.mark.parametrize(("rounds", "whole", "in_pieces"), [(True, 128, 32 + 32 + 8), (False, 70, 70)])
def test_pinned_memory_is_rounded_tensor_by_tensor_where_torch_rounds(monkeypatch, rounds, whole, in_pieces):
    monkeypatch.setattr(host, "rounds_pinned", lambda: rounds)
    assert (pinned_bytes(70), pinned_bytes(70, 32)) == (whole, in_pieces)


@pytest.mark.parametrize(("version", "rounds"), [("2.11.0", True), ("2.12.1+cu130", True), ("2.13.0", False)])
def test_torch_rounds_before_2_13(monkeypatch, version, rounds):
    monkeypatch.setattr(host, "version", lambda package: version)
    assert host.rounds_pinned.__wrapped__() is rounds


def test_opt_13b_on_one_rank(make_config, monkeypatch):
    config = make_config(
        "model=opt-13b", "hardware=a100-80g", "hardware.host_memory_gib=512", "lora=none", "zero=2-offload", "stage=sft",
        "precision=bf16", "sft.micro_batch_size=1",
    )  # fmt: skip
    whole = replace(config, zero=replace(config.zero, stage=3, offload_param=True))
    found = {}
    for rounds in (True, False):
        monkeypatch.setattr(host, "rounds_pinned", lambda rounds=rounds: rounds)
        found[rounds] = [round(host_bytes(each, "sft") / GIB) for each in (config, whole)]
    # With torch 2.11: 96 of moments, 64, 64 and 32 that are pinned, and the process.
    assert found == {True: [257, 274], False: [217, 241]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_deepspeed_keeps_on_the_host_is_what_is_planned(make_config, monkeypatch, precision):
    config = make_config("zero=2-offload", f"precision={precision}")
    start(config)
    model = nn.Linear(64, 64, bias=False).to(torch.float32 if precision == "fp32" else torch.bfloat16)
    plan = Batches(ranks=1, per_rank=1, micro=1, accumulation=1)
    engine = training_engine(model, config, TrainingSpec(config.sft, plan, config.zero, config.lora, 0.1, 0.0, False))
    backward(engine, engine(torch.ones(1, 64, dtype=model.weight.dtype)).float().sum(), 1.0)
    accumulate(engine)
    optimizer_step(engine)  # which makes the moments
    masters = master_weights(engine)
    moments = [value for state in optimizer_moments(engine).values() for value in state.values() if torch.is_tensor(value)]
    buffers = engine.optimizer.param_buffer_of_bit16_for_cpu_offload_groups
    kept = [*masters, *(master.grad for master in masters), *moments, *buffers]
    found = sum(tensor.nbytes for tensor in kept if tensor.numel() > 1)
    release(engine)
    monkeypatch.setattr(host, "count_trained", lambda role: 64 * 64)
    assert offloaded_bytes(Role(config.model, config.zero, config.lora), config) == found
