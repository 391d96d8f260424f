"""Sweeps as they lie on disk, made by hand: the files that a report reads, with numbers that a test can check."""

import json
import os
import time

import yaml

FINGERPRINT = "0123456789abcdef"


def write(file, value):
    """A JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def config(kl=0.05, seed=0, **changes):
    """A configuration with a few keys of each kind."""
    known = {
        "stages": ["sft", "reward", "ppo"],
        "seed": seed,
        "name": "fake",
        "output_root": "outputs",
        "ppo": {"kl_coef": kl, "betas": [0.9, 0.95], "actor": None},
    }
    return known | changes


def environment(commit="c" * 40, host="node1"):
    """What a stage was made with."""
    return {
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "peft": None},
        "git": {"commit": commit, "diff": None},
        "host": host,
        "gpus": ["A100", "A100"],
        "hardware": {"gpu": "a100", "nodes": 1, "gpus_per_node": 2},
    }


class FakeSweep:
    """`outputs/` with one sweep, to which stages and points are added."""

    def __init__(self, root, name="kl"):
        self.root, self.place = root, root / "sweeps" / name

    def stage(self, kind, number, metrics=None, state="done", lines=(), samples=(), reason=None, **status):
        """A stage's directory; its result only if it is done."""
        place = self.root / "stages" / f"{kind}-{number:012x}"
        known = {"state": state, "stage": kind, "fingerprint": FINGERPRINT, "attempts": 1, "reason": reason}
        write(place / "status.json", known | {"heartbeat": time.time(), "step": len(lines), "total": 4} | status)
        if state == "done":
            write(
                place / "result.json",
                {"stage": kind, "fingerprint": FINGERPRINT, "seconds": 12.5, "metrics": metrics or {}},
            )
        write(place / "environment.json", environment())
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if samples:
            (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
        return place

    def point(self, stages, state="done", settings=None, name=None, told=()):
        """A point's directory with its links; `told` is what summary.json says of stages beyond their state."""
        settings = settings or config()
        overrides = [f"ppo.kl_coef={settings['ppo']['kl_coef']}", "ppo.max_steps=4", f"seed={settings['seed']}"]
        name = name or f"{overrides[0]},{overrides[2]}"
        place = self.place / name
        entries = {}
        for stage in stages:
            kind = stage.name.rpartition("-")[0]
            done = (stage / "result.json").is_file()
            entries[kind] = {
                "directory": str(stage),
                "state": "done" if done else "planned",
                "reused": False,
                "reason": None,
            }
            entries[kind] |= {"log": None, "metrics": {}} | dict(told).get(kind, {})
            link = place / "stages" / stage.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(stage, link.parent))
        write(place / "summary.json", {"point": name, "overrides": overrides, "state": state, "stages": entries})
        (place / "config.yaml").write_text(yaml.safe_dump(settings))
        return place


def step(number, reward, gold=None, **more):
    """A line of PPO's metrics.jsonl; odd steps take twice as long and yield half as many samples a second."""
    seconds = 2.0 if number % 2 else 1.0
    line = {"step": number, "time": 1000.0 + number, "reward/mean": reward, "kl/sequence": 0.5 * number}
    line |= {"length/response": 20.0 + number, "time/step_s": seconds, "throughput/samples_per_s": 8.0 / seconds}
    line |= {"throughput/tokens_per_s": 100.0, "throughput/mfu": 0.25, "memory/peak_gib": 1.0 + number}
    return line | ({} if gold is None else {"eval/gold": gold, "eval/kl_sequence": 0.5 * number}) | more


def answer(prompt, number=4, ppo="an answer", sft="a start"):
    """A line of samples.jsonl."""
    scores = {"sft_score": -0.5, "ppo_score": 1.25, "sft_gold": 0.25, "ppo_gold": 0.75}
    return {"step": number, "prompt": prompt, "sft": sft, "ppo": ppo} | scores


# Two KL coefficients times two seeds, and the figures of each PPO stage.
GOLD = {(0.05, 0): 1.0, (0.05, 1): 2.0, (0.3, 0): 3.0, (0.3, 1): 3.5}


def grid(root):
    """Two KL coefficients times two seeds, all done: per seed one SFT and one reward model, four policies."""
    sweep = FakeSweep(root)
    sft = [sweep.stage("sft", seed, {"eval/perplexity": 1.5 + seed, "eval/loss": 0.4}) for seed in (0, 1)]
    reward = [sweep.stage("reward", seed, {"eval/accuracy": 0.7, "eval/loss": 0.6}) for seed in (0, 1)]
    for number, ((kl, seed), gold) in enumerate(GOLD.items(), start=16):
        metrics = {"eval/gold": gold, "eval/gold_sft": 0.5, "eval/kl_sequence": 1 / kl, "eval/reward": gold + 1}
        lines = [step(1, 0.1), step(2, 0.2, gold=gold - 0.5), step(3, 0.3), step(4, 0.4, gold=gold)]
        samples = [answer("early", 2), answer("What now?", ppo=f"policy {kl} {seed}"), answer("And then?")]
        ppo = sweep.stage("ppo", number, metrics, lines=lines, samples=samples)
        sweep.point([sft[seed], reward[seed], ppo], settings=config(kl, seed))
    return sweep
