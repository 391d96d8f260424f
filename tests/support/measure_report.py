"""How long a report takes: `PYTHONPATH=tests python tests/support/measure_report.py [STAGES]` makes up a sweep of so many
stages (300), writes its report, and prints the processor time of `python -m rlhf report`, start included."""

import copy
import os
import random
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from support.command import ROOT
from support.fake_sweep import FakeSweep, answer, step

SEEDS, STEPS, SAMPLES = 10, 120, 64


def make_sweep(root: Path, stages: int, config: dict) -> Path:
    """A sweep of KL coefficients times seeds, with `stages` stages in all; returns its directory."""
    sweep, draw = FakeSweep(root), random.Random(0)
    plain = [step(number, 0.1) for number in range(1, STEPS + 1)]
    sft = [sweep.stage("sft", seed, {"eval/perplexity": 1.5 + seed}, lines=plain) for seed in range(SEEDS)]
    reward = [sweep.stage("reward", seed, {"eval/accuracy": 0.7}, lines=plain) for seed in range(SEEDS)]
    for number in range(stages - 2 * SEEDS):
        others = {f"policy/figure_{name}": 0.1 for name in range(20)}
        gold = [draw.random() if at % 10 == 0 else None for at in range(1, STEPS + 1)]
        lines = [step(at, draw.random(), gold=gold[at - 1], **others) for at in range(1, STEPS + 1)]
        samples = [answer(f"prompt {row} " * 20, STEPS, ppo="word " * 50) for row in range(SAMPLES)]
        metrics = {"eval/gold": draw.random(), "eval/gold_sft": 0.5, "eval/kl_sequence": number / 10, "eval/reward": 1.0}
        ppo = sweep.stage("ppo", 1000 + number, metrics, lines=lines, samples=samples)
        settings = copy.deepcopy(config)
        settings["seed"], settings["ppo"]["kl_coef"] = number % SEEDS, 0.01 * (1 + number // SEEDS)
        sweep.point([sft[number % SEEDS], reward[number % SEEDS], ppo], settings=settings)
    return sweep.place


def measure(place: Path) -> float:
    """The processor seconds of a report."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "rlhf", "report", str(place)], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    from conftest import composed

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as directory:
        print(f"{count} stages: {measure(make_sweep(Path(directory), count, asdict(composed(())))):.1f} s of CPU")
