"""This machine's own constants: those with which the plan of the stages that it has finished is as long as they were."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml
from rich.console import Console

from rlhf.catalog.stage import kind_of
from rlhf.config.derive import samples_responses_in
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import plural
from rlhf.experiment.files import Unreadable, as_float, parse_json
from rlhf.experiment.spec import Spec, load_spec
from rlhf.experiment.stage_directory import find_stages
from rlhf.experiment.store import write_atomic
from rlhf.planner.constants import Constants
from rlhf.planner.plan import load_parts, plan_batches
from rlhf.planner.remaining import Planned
from rlhf.planner.time import step_seconds

# Where `plan --calibrate` writes, in the directory that it was given.
FILE = "constants.yaml"
# Measured metrics of a step, with the phase of the plan that each is of.
PHASES = {"time/rollout_s": "rollout", "time/score_s": "score", "time/train_s": "update"}
# Phases of a plan whose time is that of products of matrices and of the operations between them.
COMPUTING = ("train", "score", "update")
# A constant is sought within this factor of the one that is assumed, in so many halvings.
RANGE, HALVINGS = 100.0, 40
# What reading a damaged spec.json raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError)
# The least that a stage is said to take before its first step, in seconds; the file has no constant of 0.
LEAST_STARTUP = 0.01


@dataclass(frozen=True)
class Finished:
    """A finished stage.

    Attributes:
        spec: What ran.
        measured: Seconds of each phase of a step, the median over its steps.
        steps: How many steps were measured.
        seconds: From its start to its end.
        planned: What was planned of it; None for a stage of an older release.
    """

    spec: Spec
    measured: dict[str, float]
    steps: int
    seconds: float
    planned: Planned | None

    def plan_phases(self, constants: Constants) -> dict[str, float]:
        """Return the seconds of each phase of a step by these constants."""
        config, stage = self.spec.config, self.spec.stage
        answers = 2 if self.planned is None else self.planned.answers
        flops = kind_of(stage).phase_flops(config, answers)
        found = step_seconds(config, stage, flops, plan_batches(config, stage), constants, answers)
        return {phase: sum(parts.values()) for phase, parts in found.items()}


def calibrate(directories: list[Path], console: Console) -> int:
    """Write the constants that make the plan of finished stages as long as they were; returns the exit code."""
    root = directories[0] if directories else Path("outputs")
    stages, device = of_one_device(list(read_finished(root, console)))
    if not any(phase != "rollout" for stage in stages for phase in stage.measured):
        problem = "there is no finished stage with a measured step"
        raise ConfigError("argument", root, problem, "give the output_root of a run, as outputs/")
    defaults, found = Constants(), find_constants(stages)
    for name, value in found.items():
        console.print(f"{name}: {value:.4g} (assumed elsewhere: {asdict(defaults)[name]:g})")
    path = root / FILE
    note = f"# Measured on {plural(len(stages), 'stage')} of {device}: python -m rlhf plan --calibrate {root}\n"
    write_atomic(path, note + yaml.safe_dump({name: float(f"{value:.4g}") for name, value in found.items()}))
    console.print(f"written to {path}: plan with plan.constants={path}", soft_wrap=True)
    return 0


def read_finished(root: Path, console: Console) -> Iterator[Finished]:
    """Yield the finished stages that have measured a step; those that cannot be read are named and left out."""
    for directory in find_stages(root):
        try:
            result = directory.read_result()
            if result is None:
                continue
            spec = load_spec(parse_json(directory.spec_file.read_text()))
        except (ConfigError, Unreadable, *DAMAGED) as error:
            told = f"{directory.spec_file.name} cannot be read" if isinstance(error, DAMAGED) else str(error)
            console.print(f"left out: {directory.path.name}: {told}", soft_wrap=True)
            continue
        kind, seconds = kind_of(spec.stage), as_float(result.get("seconds"))
        if kind.section is None or kind.is_benchmark or seconds is None:
            continue
        rows = [row for row in directory.metrics() if row]
        metrics = PHASES if samples_responses_in(spec.stage) else {"time/step_s": "train"}
        values = {
            phase: [value for row in rows if (value := as_float(row.get(metric)))] for metric, phase in metrics.items()
        }
        measured = {phase: statistics.median(known) for phase, known in values.items() if known}
        if measured:
            yield Finished(spec, measured, len(rows), seconds, directory.planned())


def of_one_device(stages: list[Finished]) -> tuple[list[Finished], str]:
    """Return the stages that ran on the kind of device on which most time was spent, and its name: constants are shares
    of that device's data sheet."""
    spent: dict[str, float] = {}
    for stage in stages:
        device = stage.spec.config.hardware.gpu
        spent[device] = spent.get(device, 0.0) + stage.seconds
    device = max(spent, key=lambda name: spent[name], default="")
    return [stage for stage in stages if stage.spec.config.hardware.gpu == device], device


def find_constants(stages: Sequence[Finished]) -> dict[str, float]:
    """Return the constants, by name, with which all steps of finished stages together take as long as they took.

    What computes is scaled as one, then what decodes, given that; what a stage takes beside its steps is its start.
    """
    defaults = Constants()

    def scale_computing(slower: float) -> Constants:
        return replace(
            defaults,
            matmul_efficiency=defaults.matmul_efficiency / slower,
            memory_efficiency=defaults.memory_efficiency / slower,
            launch_seconds=defaults.launch_seconds * slower,
        )

    slower = find_factor(stages, COMPUTING, scale_computing)
    found = scale_computing(slower)

    def sampling(slower: float) -> Constants:
        return replace(found, decode_efficiency=defaults.decode_efficiency / slower)

    has_sampled = any("rollout" in stage.measured for stage in stages)
    found = sampling(find_factor(stages, ["rollout"], sampling) if has_sampled else slower)
    starts = [start for stage in stages if (start := find_startup(stage, found)) is not None]
    if starts:
        found = replace(found, startup_seconds=max(LEAST_STARTUP, statistics.median(starts)))
    return {name: value for name, value in asdict(found).items() if value != asdict(defaults)[name]}


def find_factor(stages: Sequence[Finished], phases: Sequence[str], scale: Callable[[float], Constants]) -> float:
    """Return how many times slower than assumed some phases ran, over all steps of all stages; found by halving, since not
    all that they take depends on it."""
    target = sum(stage.steps * seconds_of(stage.measured, phases) for stage in stages)
    low, high = 1 / RANGE, RANGE
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        planned = sum(stage.steps * seconds_of(stage.plan_phases(scale(middle)), phases) for stage in stages)
        low, high = (middle, high) if planned < target else (low, middle)
    return high


def seconds_of(phases: Mapping[str, float], names: Sequence[str]) -> float:
    """Sum the seconds of some phases."""
    return sum(phases.get(name, 0.0) for name in names)


def find_startup(stage: Finished, constants: Constants) -> float | None:
    """Return the seconds of a stage that are neither steps nor evaluations, nor reading and writing of models; None where
    its plan does not say how often it evaluates."""
    planned, pace = stage.planned, sum(stage.measured.values())
    if planned is None or planned.step_seconds is None:
        return None
    evaluating = planned.phases.get("evaluate", 0.0) * pace / planned.step_seconds
    kind = kind_of(stage.spec.stage)
    reading = load_parts(stage.spec.config, stage.spec.stage, kind, constants).get("disk", 0.0)
    return stage.seconds - stage.steps * pace - evaluating - reading - planned.phases.get("save", 0.0)
