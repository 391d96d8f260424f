"""An overflow on one rank, in one of two models, is left out by both models on all ranks. Started as a script this file is
one rank."""

import json
import os
import sys

import pytest
from support.precision_marks import HAS_FP16, fp16_case
from support.ranks import run_script

FORMATS = ("fp32", *(["fp16"] if HAS_FP16 else []), "bf16")


@pytest.fixture(scope="module")
def printed():
    return [json.loads(output.splitlines()[-1]) for output in run_script(__file__, 2)]


@pytest.mark.parametrize(
    "case", ["fp32-0", "fp32-2", "fp32-3", *map(fp16_case, ("fp16-0", "fp16-2", "fp16-3")), "bf16-0", "bf16-3"]
)
def test_both_models_on_both_ranks_leave_out_the_same_updates(printed, case):
    assert printed[0][case] == printed[1][case]
    # Finite, the first model's overflow on rank 1, the second's on rank 0, finite.
    assert [changed for changed, _ in printed[0][case]] == [[True, True], [False, False], [False, False], [True, True]]
    assert [finite for _, finite in printed[0][case]] == [[True, True], [False, True], [True, False], [True, True]]


def updates(precision, zero):
    """Four updates of two models: what changed, and whose gradient was finite."""
    import math

    import torch

    from rlhf.config.derive import Batches
    from rlhf.config.points import compose_config
    from rlhf.engine.save import whole_weight
    from rlhf.engine.step import optimizer_step
    from rlhf.engine.zero import TrainingSpec, backward, set_rates, training_engine
    from rlhf.runtime.distributed import rank, start

    config = compose_config(
        f"precision={precision}", f"zero='{zero}'", "zero.stage3_param_persistence_threshold=0", "hardware.gpus_per_node=2"
    )
    start(config)
    plan = Batches(ranks=2, per_rank=1, micro=1, accumulation=1)
    learning = TrainingSpec(config.sft, plan, config.zero, config.lora, 0.1, 0.0, False)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    engines = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        engines.append(training_engine(torch.nn.Linear(4, 4).to(dtype), config, learning))
    seen = []
    for factors in (
        (1.0, 1.0),
        (math.inf if rank() == 1 else 1.0, 1.0),
        (1.0, math.inf if rank() == 0 else 1.0),
        (1.0, 1.0),
    ):
        before = [[whole(engine, whole_weight) for engine in engines]]
        for engine, factor in zip(engines, factors, strict=True):
            set_rates(engine, 1.0)
            backward(engine, engine(torch.ones(1, 4, dtype=dtype)).float().sum() * 1e-3 * factor, 1.0)
        norms = optimizer_step(*engines)
        after = [whole(engine, whole_weight) for engine in engines]
        changed = [not torch.equal(old, new) for old, new in zip(before[0], after, strict=True)]
        seen.append((changed, [math.isfinite(norm) for norm in norms]))
    return seen


def whole(engine, read):
    """An engine's weight as rank 0 has it, on all ranks."""
    import torch
    import torch.distributed as dist

    weight = read(engine.module.weight)
    held = [weight.float().clone() if engine.global_rank == 0 else None]
    dist.broadcast_object_list(held)
    assert isinstance(held[0], torch.Tensor)
    return held[0]


if __name__ == "__main__":
    cases = [(precision, zero) for precision in FORMATS for zero in ("0", "2", "3")]
    print(json.dumps({f"{precision}-{zero}": updates(precision, zero) for precision, zero in cases}))
    sys.stdout.flush()
    os._exit(0)
