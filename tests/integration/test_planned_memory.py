"""What is planned against what a stage takes on the CPU: peak memory of each rank, without libraries' files."""

import pytest
from support.planned_memory import PPO, REWARD, SFT, make_inputs, plan_and_run

pytestmark = pytest.mark.slow

STAGES = {
    "sft": SFT,
    "lora": (*SFT, "lora=r8"),
    "reward": REWARD,
    "zero-2": (*SFT, "zero=2", "hardware.gpus_per_node=2"),
    "zero-3": (*SFT, "zero=3", "hardware.gpus_per_node=2"),
}


@pytest.mark.parametrize("model", ["opt-125m", "pythia-160m"])
@pytest.mark.parametrize("words", STAGES.values(), ids=STAGES)
def test_planned_memory_is_what_a_stage_takes(model, words, tmp_path):
    planned, peak = plan_and_run(tmp_path, f"model={model}", f"reward_model={model}", *words)
    assert planned["gib_per_gpu"] == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("words", [SFT, REWARD], ids=["sft", "reward"])
def test_planned_memory_of_a_tiny_model_is_its_process(words, tmp_path):
    planned, peak = plan_and_run(tmp_path, "model=opt-tiny", "reward_model=opt-tiny", *words)
    assert planned["gib_per_gpu"] == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("model", ["opt-125m", "smollm2-135m"])
def test_planned_memory_is_what_four_models_take(model, tmp_path):
    """Actor, critic, reference and reward model, with a rollout's cache."""
    shape = [f"model={model}", f"reward_model={model}"]
    inputs = make_inputs(tmp_path, *shape)
    planned, peak = plan_and_run(tmp_path, *shape, *inputs, *PPO)
    assert planned["gib_per_gpu"] == pytest.approx(peak, rel=0.15)
