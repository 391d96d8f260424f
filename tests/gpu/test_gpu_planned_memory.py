"""What is planned against what a stage allocates on a GPU, of a small real shape."""

import pytest
from support.planned_memory import PPO, REWARD, SFT, make_inputs, plan_and_run

# A GPU's context, and what its allocator cannot use, are in the plan and not among the allocated bytes.
NOT_ALLOCATED = ("context", "reserve")
SHAPE = ("model=opt-350m", "reward_model=opt-125m")
TINY = ("model=opt-tiny", "reward_model=opt-tiny")
LARGER = ("sft.batch_size=512", "sft.micro_batch_size=256")


@pytest.fixture
def compare(sizes, gpu_config, tmp_path):
    """`compare(*words)`: planned and allocated GiB of a stage; in a dry run resident memory stands for both of a GPU's."""
    import torch

    on_gpu = torch.cuda.is_available()
    hardware = gpu_config().hardware
    device = ["hardware=h100", f"hardware.gpu='{hardware.gpu}'", f"hardware.memory_gib={hardware.memory_gib}"]
    shape = [*sizes(SHAPE, TINY), *(device if on_gpu else [])]

    def run(*words, inputs=()):
        more = make_inputs(tmp_path, *shape, *inputs) if inputs else []
        planned, peak = plan_and_run(tmp_path, *shape, *inputs, *more, *words)
        left_out = NOT_ALLOCATED if on_gpu else ()
        phases = planned["memory"].values()
        return max(sum(gib for name, gib in parts.items() if name not in left_out) for parts in phases), peak

    return run


@pytest.mark.parametrize("words", [(*SFT, *LARGER), REWARD], ids=["sft", "reward"])
def test_planned_memory_is_what_a_stage_allocates(compare, words):
    planned, allocated = compare(*words)
    assert planned == pytest.approx(allocated, rel=0.25)


@pytest.mark.parametrize("copies", [1, 4])
def test_planned_memory_is_what_step_3_allocates(compare, copies):
    planned, allocated = compare(*PPO, inputs=[f"rollout.samples_per_prompt={copies}"])
    assert planned == pytest.approx(allocated, rel=0.25)
