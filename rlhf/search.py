"""Searching instead of listing: with -m and a key given as an interval, Optuna proposes one point after another.

Hydra's plugin for Optuna holds it at version 2 with Hydra 1.3, whose stored studies no longer work; so this asks and tells
by itself. The study is a journal in the sweep's directory: the same command goes on with it, and a trial that was broken
off is tried again.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from rlhf.config.compose import config_root, from_hydra, point_name, quoted, register, typed
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Search
from rlhf.experiment.fingerprint import fingerprint
from rlhf.experiment.sweep import Point
from rlhf.prepare import prepared
from rlhf.track.metrics import METRICS

RunOne = Callable[[DictConfig, list[str], Path], tuple[int, Point]]


def wants_search(arguments: list[str]) -> bool:
    """Whether the command line is a sweep over an interval, by itself or by its preset."""
    presets = [match[1] for argument in arguments if (match := re.match(r"\+sweeps=(\S+)$", argument))]
    files = [config_root() / "sweeps" / f"{name}.yaml" for name in presets]
    texts = [*arguments, *(file.read_text() for file in files if file.is_file())]
    return bool({"-m", "--multirun"} & set(arguments)) and any("interval(" in text for text in texts)


def search(arguments: list[str], run_one: RunOne) -> int:
    """Run trials until the study has `sweep.trials` of them; returns the exit code."""
    register()
    fixed, space = split([argument for argument in quoted(arguments) if not argument.startswith("-")])
    base = prepared(typed(composed(fixed, [])))
    console, code = Console(), 0
    if base.dry_run:
        lines = "  ".join(f"{override.key_or_group}={override.value()}" for override in space)
        console.print(f"{base.sweep.trials} trials for the best {base.sweep.objective}: {lines}", soft_wrap=True)
        return 0
    study = open_study(base, space)
    repeat_broken(study)
    while (done := finished(study)) < base.sweep.trials:
        study.sampler = sampler(base, done)
        trial = study.ask()
        chosen = [f"{override.key_or_group}={suggest(trial, override)}" for override in space]
        console.print(f"[bold]trial {done + 1} of {base.sweep.trials}[/]: {' '.join(chosen)}", soft_wrap=True)
        place = Path(base.output_root) / "sweeps" / base.name / point_name(chosen, [])
        ended, point = run_one(composed(fixed, chosen), [*fixed, *chosen], place)
        if ended == 130:
            return 130
        value = objective(point, base.sweep) if ended == 0 else None
        code = max(code, ended)
        if value is None:
            trial.set_user_attr("failed", True)
            study.tell(trial, state=failed_state())
        else:
            study.tell(trial, value)
    report(study, base, console)
    return code


def split(arguments: list[str]) -> tuple[list[str], list[Override]]:
    """Overrides that are the same in all trials, and those that are searched, the preset's too. Raises ConfigError."""
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
        fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
        space = [override for override in overrides if override.is_sweep_override()]
        params = composed([str(line) for line in fixed], [], whole=True).hydra.sweeper.params or {}
        given = {override.key_or_group for override in overrides}
        preset = [f"{key}={value}" for key, value in params.items() if key not in given]
        space += OverridesParser.create().parse_overrides(preset)
    except HydraException as error:
        raise from_hydra(error, arguments) from error
    return [str(line) for line in fixed], space


def composed(fixed: list[str], chosen: list[str], whole: bool = False) -> DictConfig:
    """The composed values of a trial; with Hydra's own if `whole`."""
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        try:
            return compose("config", overrides=[*fixed, *quoted(chosen)], return_hydra_config=whole)
        except HydraException as error:
            raise from_hydra(error, [*fixed, *chosen]) from error


def open_study(config: Config, space: list[Override]) -> Any:
    """The study in the sweep's directory of this space and all else that decides its values, made if there is none. Raises
    ConfigError."""
    settings = config.sweep
    if settings.objective not in METRICS:
        near = difflib.get_close_matches(settings.objective, METRICS, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]}?" if near else "see rlhf/track/metrics.py"
        raise ConfigError("sweep.objective", settings.objective, "there is no such metric", fix)
    if config.launcher.kind == "slurm" and not config.launcher.wait:
        problem = "a search needs the value of each point before it proposes the next"
        raise ConfigError("launcher.wait", False, problem, "set launcher.wait=true")
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        fix = "pip install 'rlhf[search]'"
        raise ConfigError("sweep.sampler", settings.sampler, "intervals need the package optuna", fix) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = Path(config.output_root) / "sweeps" / config.name / "study.journal"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(place)))
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
        raise ConfigError(
            "output_root", config.output_root, problem, "choose another directory: output_root=..."
        ) from error
    direction: Any = settings.direction
    name = study_name(config, space)
    return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)


def study_name(config: Config, space: list[Override]) -> str:
    """What tells a search from others of the same name: its space, what is sought, and what decides the values."""
    searched = sorted(str(override.input_line) for override in space)
    fixed = [fingerprint(config, stage, {}) for stage in config.stages]
    identity = json.dumps([searched, config.sweep.objective, config.sweep.direction, fixed])
    return f"{config.sweep.objective} {hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def sampler(config: Config, trial: int) -> Any:
    """The sampler of a trial, seeded by its number: a study that is resumed proposes what the unbroken one would."""
    import optuna

    kind = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[config.sweep.sampler]
    return kind(seed=(config.seed + trial) % 2**32)


def suggest(trial: Any, override: Override) -> Any:
    """The trial's value of a searched key."""
    key, value = str(override.key_or_group), override.value()
    if not isinstance(value, IntervalSweep):
        return trial.suggest_categorical(key, [str(choice) for choice in override.sweep_string_iterator()])
    log = "log" in value.tags
    if isinstance(value.start, int) and isinstance(value.end, int):
        return trial.suggest_int(key, value.start, value.end, log=log)
    return f"{trial.suggest_float(key, float(value.start or 0), float(value.end or 0), log=log):.6g}"


def repeat_broken(study: Any) -> None:
    """Give up trials that a former process left unfinished, and put their points first in the queue."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def finished(study: Any) -> int:
    """Trials that have a value, or whose point failed."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return sum(trial.state == TrialState.COMPLETE or trial.user_attrs.get("failed", False) for trial in trials)


def failed_state() -> Any:
    """Optuna's name for a trial without a value."""
    from optuna.trial import TrialState

    return TrialState.FAIL


def objective(point: Point, settings: Search) -> float | None:
    """The figure that is sought, of the last stage that has it; None if it is not finite. Raises ConfigError if none does:
    no other point would have it either."""
    found = {name: value for node in point.stages for name, value in node.directory.result().metrics.items()}
    if settings.objective not in found:
        fix = f"choose one of {', '.join(sorted(found))}"
        raise ConfigError("sweep.objective", settings.objective, "the stages have no such figure", fix)
    value = found[settings.objective]
    return value if math.isfinite(value) else None


def report(study: Any, config: Config, console: Console) -> None:
    """The best trial."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        console.print("no trial has a value")
        return
    best = study.best_trial
    values = " ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in best.params.items()
    )
    console.print(f"best of {finished(study)}: {config.sweep.objective} {best.value:.4g} with {values}", soft_wrap=True)
