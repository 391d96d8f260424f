"""This machine's own constants, from the stages that it has finished: planned seconds beside measured ones."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console

from rlhf.catalog.stage import kind_of
from rlhf.config.derive import samples_responses_in
from rlhf.config.errors import ConfigError
from rlhf.experiment.files import as_float, parse_json
from rlhf.experiment.spec import Spec, load_spec
from rlhf.experiment.stage_directory import StageDirectory, find_stages
from rlhf.experiment.store import write_atomic
from rlhf.planner.constants import Constants
from rlhf.planner.plan import plan_batches
from rlhf.planner.time import step_seconds

# Where `plan --calibrate` writes, in the directory that it was given.
FILE = "constants.yaml"
# Measured metrics of a step, with the phase of the plan that each is of.
PHASES = {"time/rollout_s": "rollout", "time/score_s": "score", "time/train_s": "update"}


def calibrate(directories: list[Path], console: Console) -> int:
    """Write the constants that make the plan of finished stages as long as they were; returns the exit code."""
    root = directories[0] if directories else Path("outputs")
    ratios: list[tuple[str, float]] = []
    for directory in find_stages(root):
        try:
            ratios += compare_stage(directory)
        except ConfigError as error:  # of another release
            console.print(f"left out: {error}", soft_wrap=True)
    computed = [ratio for phase, ratio in ratios if phase != "rollout"]
    sampled = [ratio for phase, ratio in ratios if phase == "rollout"]
    if not computed:
        problem = "there is no finished stage with a measured step"
        raise ConfigError("argument", root, problem, "give the output_root of a run, as outputs/")
    slower, defaults = 1 / statistics.median(computed), Constants()
    sampling = 1 / statistics.median(sampled) if sampled else slower
    found = {
        "matmul_efficiency": defaults.matmul_efficiency / slower,
        "memory_efficiency": defaults.memory_efficiency / slower,
        "decode_efficiency": defaults.decode_efficiency / sampling,
        "launch_seconds": defaults.launch_seconds * max(slower, sampling),
    }
    for name, value in asdict(defaults).items():
        if name in found:
            console.print(f"{name}: {found[name]:.4g} (assumed elsewhere: {value:g})")
    path = root / FILE
    note = f"# Measured on {len(ratios)} phases of finished stages: python -m rlhf plan --calibrate {root}\n"
    write_atomic(path, note + yaml.safe_dump({name: float(f"{value:.4g}") for name, value in found.items()}))
    console.print(f"written to {path}: plan with plan.constants={path}", soft_wrap=True)
    return 0


def compare_stage(directory: StageDirectory) -> Iterator[tuple[str, float]]:
    """Compare each phase of a finished stage's steps: planned seconds over the median of the measured ones."""
    if not directory.done:
        return
    spec: Spec = load_spec(parse_json(directory.spec_file.read_text()))
    if kind_of(spec.stage).section is None or kind_of(spec.stage).is_benchmark:
        return
    config, rows = spec.config, [row for row in directory.metrics() if row]
    flops = kind_of(spec.stage).phase_flops(config, 2)
    planned = step_seconds(config, spec.stage, flops, plan_batches(config, spec.stage), Constants())
    metrics = PHASES if samples_responses_in(spec.stage) else {"time/step_s": "train"}
    for metric, phase in metrics.items():
        measured = [seconds for row in rows if (seconds := as_float(row.get(metric))) is not None]
        if measured and phase in planned:
            yield phase, sum(planned[phase].values()) / statistics.median(measured)
