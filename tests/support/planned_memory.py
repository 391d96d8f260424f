"""Planned memory beside what a stage takes, by the command itself."""

import json
import subprocess
import sys

# Records that are all cut at the longest length, so that the plan's lengths are the real ones; of models the shapes.
SETTINGS = (
    "data=demo", "data.demo.heldout_prompts=4", "data.max_prompt_tokens=16", "data.max_response_tokens=8",
    "data.truncation=left", "sft=demo", "reward=demo", "reward.grouped=false", "ppo=demo", "rollout/length@rollout=demo",
    "model.path=null", "reward_model.path=null", "checkpoint.every_minutes=null",
)  # fmt: skip
PLAIN = ("lora=none", "lora@critic_lora=none", "lora@reward_lora=none", "zero=0")
SFT = ("stage=sft", "sft.batch_size=64", "sft.max_steps=2")
REWARD = ("stage=reward", "reward.batch_size=16", "reward.max_steps=2")
# Optimisers make their state in the first update, so that the second step is the largest.
PPO = (
    "stage=ppo", "ppo.rollout_batch_size=32", "ppo.batch_size=32", "ppo.update_epochs=1", "ppo.max_steps=2",
    "rollout.max_new_tokens=24", "rollout.fixed_length=true", "ppo.eos_penalty=null",
)  # fmt: skip


def rlhf(*words):
    """Standard output of the command."""
    done = subprocess.run([sys.executable, "-m", "rlhf", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def with_defaults(words, defaults):
    """Words, and those defaults whose group none of them chooses."""
    chosen = {word.partition("=")[0] for word in words}
    return [*(word for word in defaults if word.partition("=")[0] not in chosen), *words]


def plan_and_run(root, *words):
    """The plan of the last stage that the words name, and the peak memory of its process in GiB as it logs it: resident on
    the CPU, without libraries' files; allocated on a GPU."""
    command = [*with_defaults(words, [*SETTINGS, *PLAIN]), f"output_root={root}"]
    planned = json.loads(rlhf("plan", *command, "--json"))["stages"][-1]
    rlhf(*command)
    (metrics,) = root.glob(f"stages/{planned['name']}/metrics.jsonl")
    peak = max(json.loads(line).get("memory/peak_gib", 0.0) for line in metrics.read_text().splitlines())
    return planned, peak


def make_inputs(root, *words):
    """Train a policy and a reward model for one step each: what step 3 starts from."""
    for stage in ("sft", "reward"):
        rlhf(
            *with_defaults(words, [*SETTINGS, *PLAIN]), f"stage={stage}", f"{stage}.batch_size=8", f"{stage}.max_steps=1",
            f"output_root={root}",
        )  # fmt: skip
    return [f"{stage}.{key}" for stage in ("sft", "reward") for key in ("batch_size=8", "max_steps=1")]
