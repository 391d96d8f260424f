"""What is planned against what a stage takes on the CPU: peak resident memory of each rank."""

import json
import subprocess
import sys

import pytest

# Records that are all cut at the longest length, so that the plan's lengths are the real ones.
SETTINGS = (
    "data=demo", "data.demo.heldout_prompts=4", "data.max_prompt_tokens=16", "data.max_response_tokens=8",
    "data.truncation=left", "sft=demo", "reward=demo", "reward.grouped=false", "lora=none", "lora@critic_lora=none",
    "lora@reward_lora=none", "zero=0", "checkpoint.every_minutes=null",
)  # fmt: skip
SFT = ("stage=sft", "sft.batch_size=64", "sft.max_steps=2")


def rlhf(*words):
    """Standard output of the command."""
    done = subprocess.run([sys.executable, "-m", "rlhf", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("model", ["opt-125m", "pythia-160m"])
@pytest.mark.parametrize(
    "words",
    [
        SFT,
        (*SFT, "lora=r8"),
        ("stage=reward", "reward.batch_size=16", "reward.max_steps=2"),
        (*SFT, "zero=2", "hardware.gpus_per_node=2"),
        (*SFT, "zero=3", "hardware.gpus_per_node=2"),
    ],
    ids=["sft", "lora", "reward", "zero-2", "zero-3"],
)
def test_planned_memory_is_what_a_stage_takes(model, words, tmp_path):
    shape = [f"model={model}", "model.path=null", f"reward_model={model}", "reward_model.path=null"]
    command = [*shape, *SETTINGS, f"output_root={tmp_path}", *[word for word in words if word != "zero=0"]]
    kept = [word for word in command if not (word == "zero=0" and any(w.startswith("zero=") for w in words))]
    kept = [word for word in kept if not (word == "lora=none" and any(w.startswith("lora=") for w in words))]
    (planned,) = json.loads(rlhf("plan", *kept, "--json"))["stages"]
    rlhf(*kept)
    (metrics,) = tmp_path.glob("stages/*/metrics.jsonl")
    peak = max(json.loads(line).get("memory/peak_gib", 0.0) for line in metrics.read_text().splitlines())
    assert planned["gib_per_gpu"] == pytest.approx(peak, rel=0.15)
