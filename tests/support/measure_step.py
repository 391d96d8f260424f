"""Processor seconds of a step of PPO by phase, in several ways that take turns on the same models:
`python tests/support/measure_step.py ROUNDS FILE KEY=VALUE... -- KEY=VALUE... -- ...`. The words before the first `--` are
shared, and make the first way; those after each `--` are another way's own. Each makes a step to warm up, then ROUNDS. FILE
receives the figures as JSON: of each phase the median, the least and the largest."""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import transformers

from rlhf.cli.prepare import load_config
from rlhf.runtime.distributed import leave, start
from rlhf.tracking import throughput


def split_words(words):
    """The overrides of each way."""
    groups = [[]]
    for word in words:
        if word == "--":
            groups.append([])
        else:
            groups[-1].append(word)
    return [groups[0], *(groups[0] + own for own in groups[1:])]


def spread(numbers):
    """The median, the least and the largest."""
    return [round(value, 3) for value in (statistics.median(numbers), min(numbers), max(numbers))]


def main():
    rounds, file, *words = sys.argv[1:]
    configs = [load_config(*way) for way in split_words(words)]
    start(configs[0])  # before anything imports deepspeed: it looks for its device then
    from rlhf import DeepSpeedPPOTrainer
    from rlhf.stages.bench.rounds import random_models, train

    found, load = [[] for _ in configs], os.getloadavg()[0]
    processor = SimpleNamespace(perf_counter=time.process_time)
    with (
        patch.object(throughput, "time", processor), tempfile.TemporaryDirectory() as directory,
        random_models(configs[0], Path(directory) / "random") as models,
    ):  # fmt: skip
        trainers = [DeepSpeedPPOTrainer(models.engine, config) for config in configs]
        for number in range(int(rounds) + 1):
            for trainer, steps in zip(trainers, found, strict=True):
                train(trainer, trainer.generate_experience(models.prompts))
                seconds = trainer.clock.seconds | {"step": sum(trainer.clock.seconds.values())}
                if number:
                    steps.append(seconds)
    ways = [
        {
            "words": way,
            "seconds": {phase: spread([step[phase] for step in steps]) for phase in steps[0]},
            "times_as_fast": spread([first["step"] / step["step"] for first, step in zip(found[0], steps, strict=True)]),
        }
        for way, steps in zip(split_words(words), found, strict=True)
    ]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    told = {"command": sys.argv, "load": [load, os.getloadavg()[0]], "versions": versions, "ways": ways}
    Path(file).write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(ways, indent=1))
    leave()


if __name__ == "__main__":
    main()
