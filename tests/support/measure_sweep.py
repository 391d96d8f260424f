"""What a sweep costs beside its steps: `python tests/support/measure_sweep.py [FILE] [ROUNDS]` sweeps six PPO points of
the demo, over SFT and reward stages that are there, in several ways in turn; prints the medians, and writes a JSON file.

Points of three steps: `inline` trains in the launching process, `warm` in workers that are forked, `cold` in workers that
start as programs. Points of fifteen steps: `one` runs a stage at a time, `two` runs two. Processor seconds are those of all
processes of a command; steps are timed by the stages. Beside each round stands how much more two processes of plain torch
do at a time than one alone: 2.0 where cores share nothing.
"""

import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
POINTS, ROUNDS = 6, 3
SHORT, LONG = 3, 15
SPIN_S = 8.0
SWEPT = f"ppo.kl_coef={','.join(f'0.{point}' for point in range(1, POINTS + 1))}"
WAYS = {
    "inline": (SHORT, ("launcher=inline",)),
    "warm": (SHORT, ("launcher=local",)),
    "cold": (SHORT, ("launcher=local",)),
    "one": (LONG, ("launcher=local",)),
    "two": (LONG, ("launcher=local", "launcher.parallel=2")),
}
PR_SET_CHILD_SUBREAPER = 36  # man 2 prctl


def cpu_seconds() -> float:
    """Return the processor time of the processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(
    root: Path, steps: int, *overrides: str, cold: bool = False, watch: Callable[[int], None] | None = None
) -> dict[str, float]:
    """Run a command to its end, and that of all its processes; return its seconds, and the processors' seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [__file__, "--cold"] if cold else ["-m", "rlhf"]
    size = ("sft.max_steps=3", "reward.max_steps=3", f"ppo.max_steps={steps}")
    words = [sys.executable, *program, *size, "launcher.threads=1", f"output_root={root}", *overrides]
    began, used = time.perf_counter(), cpu_seconds()
    with (root / "said").open("a") as said:
        command = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
        if watch is not None:
            watch(command.pid)
        if command.wait():
            raise SystemExit((root / "said").read_text())
    seconds = time.perf_counter() - began
    try:
        while True:
            os.wait()  # for the server of workers, which ends after the command
    except ChildProcessError:
        return {"seconds": seconds, "cpu_s": cpu_seconds() - used}


def sweep(root: Path, way: str) -> dict[str, float]:
    """Sweep in one way, over the stages of before that the points share."""
    for done in [*root.glob("stages/ppo-*"), root / "sweeps"]:
        shutil.rmtree(done, ignore_errors=True)
    steps, overrides = WAYS[way]
    found = run(root, steps, "-m", SWEPT, *overrides, cold=way == "cold")
    lines = [json.loads(line) for file in root.glob("stages/ppo-*/metrics.jsonl") for line in file.read_text().splitlines()]
    stepping = sum(line.get("time/step_s", 0.0) for line in lines)
    stages = sum(json.loads(file.read_text())["seconds"] for file in root.glob("stages/ppo-*/status.json"))
    return found | {"steps_s": stepping, "stages_s": stages, "stages_per_steps": stages / stepping}


def measure_first_step(root: Path) -> float:
    """Return the processor seconds of the demo from the start of its command to the end of its first step."""
    spent: list[float] = []

    def watch(number: int) -> None:
        process = psutil.Process(number)
        while not any('"train/loss"' in file.read_text() for file in root.glob("stages/sft-*/metrics.jsonl")):
            time.sleep(0.01)
        spent.append(sum(process.cpu_times()[:2]))

    run(root, SHORT, watch=watch)
    return spent[0]


def compare_processes() -> float:
    """Return the passes of a small model that two processes make at a time, over one process's alone."""

    def count(processes: int) -> float:
        words, environment = [sys.executable, __file__, "--spin"], {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(process.communicate()[0]) for process in started)

    return count(2) / count(1)


def spin() -> None:
    """Print the passes per second, forward and backward, of four layers of plain torch."""
    import torch

    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    model, batch = torch.nn.TransformerEncoder(layer, 4), torch.randn(16, 128, 128)
    model(batch).sum().backward()
    began, passes = time.perf_counter(), 0
    while time.perf_counter() - began < SPIN_S:
        model(batch).sum().backward()
        passes += 1
    print(passes / (time.perf_counter() - began))


def main(file: Path | None, rounds: int) -> None:
    """Measure all ways in turn, so many times, after a round that is not counted."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    first_step, processes = [], []
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            first_step.append(measure_first_step(root))
            for way in WAYS if number else ():
                rows[way].append(sweep(root, way))
        processes.append(compare_processes())
        told = f"first step after {first_step[-1]:.2f} CPU s, two processes do {processes[-1]:.2f} times what one does"
        print(f"round {number} of {rounds}, {told}", flush=True)
        if number and file is not None:
            report(file, first_step[1:], processes[1:], rows)
    for way, measured in rows.items():
        print(way, {name: spread([row[name] for row in measured])["median"] for name in measured[0]})


def report(file: Path, first_step: list[float], processes: list[float], rows: dict[str, list[dict[str, float]]]) -> None:
    """Write what the rounds so far have measured."""
    told = {
        "command": f"OMP_NUM_THREADS=1 python tests/support/measure_sweep.py {file.name}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, one thread per rank; load {os.getloadavg()[2]:.1f} over 15 minutes",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "points": POINTS,
        "rounds": len(first_step),
        "first_step_cpu_s": spread(first_step),
        "two_processes_over_one": spread(processes),
        "sweeps": {way: {name: spread([row[name] for row in found]) for name in found[0]} for way, found in rows.items()},
    }
    file.write_text(json.dumps(told, indent=2) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Return the least, the median and the largest."""
    middle = statistics.median(values)
    return {name: round(value, 2) for name, value in (("least", min(values)), ("median", middle), ("largest", max(values)))}


def sweep_cold() -> None:
    """Be `python -m rlhf`, whose workers start as programs."""
    from rlhf.cli import main as run_program
    from rlhf.launch import scheduler, workers

    scheduler.fork = workers.spawn  # type: ignore[attr-defined]
    sys.exit(run_program())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cold"]:
        del sys.argv[1]
        sweep_cold()
    elif sys.argv[1:] == ["--spin"]:
        spin()
    else:
        given = sys.argv[1:]
        main(Path(given[0]) if given else None, int(given[1]) if given[1:] else ROUNDS)
