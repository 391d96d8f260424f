"""Where the time of a step of PPO goes: `python tests/support/measure_kernels.py model=opt-1.3b hardware=h100` makes one
step of the benchmark's recipe (experiments/bench.yaml) after one that warms up, and prints how long each kernel took, for
the rollout and for the updates that follow; on the CPU, each of torch's operators.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rlhf.cli.bench import compose_benchmark
from rlhf.runtime.device import synchronize
from rlhf.runtime.distributed import leave, start

ROWS = 45


def print_kernels(title, step):
    """Run a part of a step, and print a table of its kernels; returns what it returns."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as found:
        began = time.perf_counter()
        made = step()
        synchronize()
        seconds = time.perf_counter() - began
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    rows = [
        (row.self_device_time_total if on_gpu else row.self_cpu_time_total, row.count, row.key)
        for row in found.key_averages()
        if row.device_type == kind and not getattr(row, "is_user_annotation", False)
    ]
    whole = sum(micros for micros, *_ in rows)
    print(f"\n{title}: {seconds:.2f} s, with the profiler; {len(rows)} kinds of kernels take {whole / 1e6:.2f} s")
    print(f"{'ms':>10} {'share':>6} {'calls':>8} {'µs each':>9}  kernel")
    for micros, count, name in sorted(rows, reverse=True)[:ROWS]:
        print(f"{micros / 1e3:10.1f} {micros / whole:6.1%} {count:8} {micros / count:9.1f}  {name[:110]}", flush=True)
    return made


def main():
    config = compose_benchmark(sys.argv[1:])
    start(config)  # before anything imports deepspeed: it looks for its device then
    from rlhf import DeepSpeedPPOTrainer
    from rlhf.stages.bench.rounds import random_models, train

    with tempfile.TemporaryDirectory() as directory, random_models(config, Path(directory) / "random") as models:
        trainer = DeepSpeedPPOTrainer(models.engine, config)
        train(trainer, trainer.generate_experience(models.prompts))
        experience = print_kernels("Rollout and scoring", lambda: trainer.generate_experience(models.prompts))
        print_kernels("Updates", lambda: train(trainer, experience))
        for name, seconds in trainer.clock.seconds.items():
            print(f"{name}: {seconds:.2f} s in both steps")
    leave()


if __name__ == "__main__":
    main()
