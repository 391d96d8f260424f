"""A step of PPO of commit 8352daf beside today's: `python tests/support/measure_commits.py TREE FILE [ROUNDS] [SHAPE...]`,
where TREE is a checkout of it (`git worktree add --detach TREE 8352daf`), writes a JSON file and prints how often today's
seconds go into the former ones: of a step as it is, and of one with ppo.reuse_forward.

Each has a process of its own, with the models of the benchmark (experiments/bench.yaml) in memory; they take turns
with one step each, after one that warms up, on the same prompts and lengths, one thread each. Seconds are told by the wall
clock and as processor time, which other programs disturb less.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BEFORE, ROUNDS, LENGTHS = "8352daf", 3, ("real", "fixed")
# The shapes of models by today's keys, what these were called then; and the sequences of a step, and its longest texts.
SHAPES: dict[str, dict[str, int]] = {
    "4x128": {"num_hidden_layers": 4, "hidden_size": 128, "head_dim": 32, "intermediate_size": 512},
    "opt-125m": {},
}
FORMER = {"num_hidden_layers": "layers", "hidden_size": "width", "head_dim": "head_width", "intermediate_size": "ffn"}
SIZES = {"4x128": (16, 128), "opt-125m": (8, 64)}
PHASES = ("rollout", "score", "train")
# Today's steps, with the keys of each.
TODAY = {"today": (), "one forward": ("ppo.reuse_forward=true",)}


def overrides(shape: str, lengths: str, name: str) -> list[str]:
    """Return the configuration of a step, in the words of its tree."""
    former = name == BEFORE
    sequences, most = SIZES[shape]
    words = [f"model={shape}", f"reward_model={shape}"] if shape.startswith("opt") else []
    for key, value in SHAPES[shape].items():
        words += [f"{model}.{FORMER[key] if former else key}={value}" for model in ("model", "reward_model")]
    return words + [
        "+experiments=bench", f"data.max_prompt_tokens={most}", f"data.max_response_tokens={most}",
        f"rollout.max_new_tokens={most}", f"ppo.rollout_batch_size={sequences}", f"ppo.batch_size={sequences}",
        "ppo.micro_batch_size=8",
        "launcher.threads=1", f"bench.lengths={lengths}", *([] if former else ["bench.peer=null", *TODAY[name]]),
    ]  # fmt: skip


def serve(words: list[str]) -> None:
    """Be one tree: take a step for each line that comes in, and tell its seconds."""
    try:
        from rlhf.cli.prepare import load_config
        from rlhf.stages.bench.rounds import random_models, round_of
    except ModuleNotFoundError:  # the former tree
        from rlhf.measure.ppo import random_models, round_of  # type: ignore[no-redef]
        from rlhf.prepare import load_config  # type: ignore[no-redef]
    config = load_config(*words)
    with tempfile.TemporaryDirectory() as directory, random_models(config, Path(directory) / "random") as models:
        once = round_of(config, models)
        for _ in sys.stdin:
            began = time.process_time()
            figures = once()
            told = {name: figures[f"time/{name}_s"] for name in (*PHASES, "step")}
            print("told", json.dumps(told | {"step_cpu": time.process_time() - began}), flush=True)


def measure(trees: dict[str, Path], shape: str, lengths: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Let the steps, each of a tree, take turns, so many times after one that warms up; returns the seconds of each."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", *overrides(shape, lengths, name)], cwd=tree, text=True,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name, tree in trees.items()
    }  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            line = next(line for line in worker.stdout if line.startswith("told "))
            if number:
                found[name].append(json.loads(line.removeprefix("told ")))
    for worker in workers.values():
        worker.communicate()
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Return the least, the median and the largest."""
    middle = statistics.median(values)
    return {name: round(value, 3) for name, value in (("least", min(values)), ("median", middle), ("largest", max(values)))}


def report(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the seconds of each step, and how often today's go into the former one's, turn by turn."""
    seconds = {step: {name: spread([row[name] for row in rows]) for name in rows[0]} for step, rows in found.items()}
    times = {
        step: {
            name: spread([then[name] / now[name] for then, now in zip(found[BEFORE], found[step], strict=True)])
            for name in found[step][0]
        }
        for step in TODAY
    }
    return {**seconds, "times_as_fast": times}


def main(former: Path, file: Path, rounds: int, shapes: list[str]) -> None:
    """Measure all shapes and lengths, and write what is found after each."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    given = f"TREE {file.name} {rounds} {' '.join(shapes)}"
    told = {
        "command": f"OMP_NUM_THREADS=1 python tests/support/measure_commits.py {given}",
        "date": time.strftime("%Y-%m-%d"), "commits": {"before": BEFORE, "today": commit.stdout.strip()},
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")}, "rounds": rounds,
        "sequences_and_tokens": SIZES, "steps": {},
    }  # fmt: skip
    for shape in shapes:
        for lengths in LENGTHS:
            found = measure({BEFORE: former, **dict.fromkeys(TODAY, ROOT)}, shape, lengths, rounds)
            told["steps"][f"{shape}, {lengths} lengths"] = report(found)
            told["machine"] = f"{os.cpu_count()} cores, one thread; load {os.getloadavg()[2]:.1f} over 15 minutes"
            file.write_text(json.dumps(told, indent=2) + "\n")
            for step, times in report(found)["times_as_fast"].items():
                print(shape, lengths, step, json.dumps(times), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    else:
        tree, file, *more = sys.argv[1:]
        main(Path(tree).resolve(), Path(file), int(more[0]) if more else ROUNDS, more[1:] or list(SHAPES))
