"""Searching instead of listing: with -m and a key given as an interval, Optuna proposes one point after another.

Hydra's plugin for Optuna holds it at version 2 with Hydra 1.3, whose stored studies no longer work; so this asks and tells
by itself. The study is a journal in the sweep's directory: the same command goes on with it, and a trial that was broken
off is tried again.
"""

import contextlib
import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from rich.console import Console
from rich.text import Text

from rlhf.catalog.stage import known_metrics, metrics_of
from rlhf.cli.prepare import resolve_config
from rlhf.cli.pruning import build_pruner, check_pruner, is_pruned, pruning
from rlhf.config.compose import rewrite_words
from rlhf.config.disk import disk_problem
from rlhf.config.errors import ConfigError, raise_problems
from rlhf.config.keys import ENTRIES, get_key, keys_of
from rlhf.config.overrides import typed_value, without_values
from rlhf.config.points import Composer, Job
from rlhf.config.rewards import has_gold
from rlhf.config.schema import Config, Search
from rlhf.config.terminal import Terminal
from rlhf.config.values import check_values
from rlhf.experiment.fingerprint import fingerprint
from rlhf.experiment.lock import hold
from rlhf.experiment.sweep import Point

# Runs a point of a search within a context of it; returns the exit code and the point.
RunOne = Callable[[Job, Callable[[Point], AbstractContextManager[None]]], tuple[int, Point]]


def wants_search(composer: Composer) -> bool:
    """Whether the command is a sweep over an interval, by itself or by its preset."""
    return composer.swept and any(override.is_interval_sweep() for override in composer.overrides)


def search(composer: Composer, run_one: RunOne) -> int:
    """Run trials until the study has `sweep.trials` of them; returns the exit code."""
    fixed, space = split_sweep(composer)
    base = check_search(composer, fixed, space)
    console = Terminal()
    if base.dry_run:
        lines = "  ".join(f"{override.get_key_element()}={typed_value(override)}" for override in space)
        console.print(f"{base.sweep.trials} trials for the best {base.sweep.objective}: {lines}", soft_wrap=True)
        return 0
    directory = composer.sweep_directory
    with check_writable(base), hold(directory, base.launcher.lock_timeout_s, waiting=console.print):
        study = open_study(base, space, directory)
        repeat_broken(study)
        return run_trials(study, composer, fixed, space, base, run_one, console)


def run_trials(
    study: Any, composer: Composer, fixed: list[str], space: list[Override], base: Config, run_one: RunOne, console: Console
) -> int:
    """Run trials until the study has `sweep.trials` of them; returns the exit code."""
    code = 0
    while (done := finish_trial(study)) < base.sweep.trials:
        study.sampler = build_sampler(base, done)
        trial = study.ask()
        chosen = [f"{override.get_key_element()}={suggest(trial, override)}" for override in space]
        told = (f"trial {done + 1} of {base.sweep.trials}", "bold"), f": {' '.join(chosen)}"
        console.print(Text.assemble(*told), soft_wrap=True)
        job = composer.compose_job([*fixed, *rewrite_words(chosen)], done)
        ended, point = run_one(job, lambda point, trial=trial: pruning(trial, point, base))  # type: ignore[misc]
        if ended == 130:
            return 130
        code = max(code, ended)
        if ended == 0 and is_pruned(point):
            study.tell(trial, state=pruned_state())
            continue
        value = objective(point, base.sweep) if ended == 0 else None
        if value is None:
            trial.set_user_attr("failed", True)
            study.tell(trial, state=failed_state())
        else:
            study.tell(trial, value)
    print_study(study, base, console)
    return code


def split_sweep(composer: Composer) -> tuple[list[str], list[Override]]:
    """Split a command's overrides into the constant ones and the searched ones, the preset's too. Raises ConfigError."""
    if problem := without_values(composer.overrides, composer.group):
        raise problem
    fixed = [str(override.input_line) for override in composer.overrides if not override.is_sweep_override()]
    return fixed, [override for override in composer.overrides if override.is_sweep_override()]


def check_search(composer: Composer, fixed: list[str], space: list[Override]) -> Config:
    """Return the configuration without the searched keys. Raises ConfigError for a search that cannot work: what is sought,
    and each searched key at both ends of its interval and at all values of its list."""
    base = resolve_config(composer.compose_job(fixed).config)
    sought = base.sweep.objective or ("eval/gold" if has_gold(base) else "eval/reward")
    settings = replace(base.sweep, objective=sought)
    base = replace(base, sweep=settings)
    known = [*known_metrics(), *(name for stage in base.stages for name in metrics_of(stage))]
    if sought not in known:
        near = difflib.get_close_matches(sought, known, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]}?" if near else "the documentation's page `All metrics` lists what there is"
        raise ConfigError("sweep.objective", sought, "there is no such metric", fix)
    if base.launcher.kind == "slurm" and not base.launcher.wait:
        problem = "a search needs the value of each point before it proposes the next"
        raise ConfigError("launcher.wait", False, problem, "set launcher.wait=true")
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        fix = "pip install 'rlhf[search]'"
        raise ConfigError("sweep.sampler", settings.sampler, "intervals need the package optuna", fix) from error
    check_pruner(base)
    for override in space:
        check_space(override)
    raise_problems(
        problem for override in space for problem in find_search_problems(composer, fixed, override, len(space) == 1)
    )
    return base


def find_search_problems(composer: Composer, fixed: list[str], override: Override, alone: bool) -> Iterator[ConfigError]:
    """Find what is wrong at the ends of an interval, or with the values of a list. Whether a value goes with all others is
    known only if this key `alone` is searched."""
    for value in candidates(override):
        try:
            config = composer.compose_job([*fixed, *rewrite_words([f"{override.get_key_element()}={value}"])]).config
            if alone:
                resolve_config(config)
            elif (key := str(override.key_or_group)) in (keys := keys_of(type(config))):
                raise_problems(error for error, _ in check_values({key: get_key(config, key)}, keys))
        except ConfigError as error:
            yield error


def check_space(override: Override) -> None:
    """Check the intervals: numbers in order, above zero on a logarithmic scale. Raises ConfigError."""
    key, typed, value = override.get_key_element(), typed_value(override), override.value()
    entry = ENTRIES.get(str(override.key_or_group))
    if entry is not None and entry.once:
        raise ConfigError(key, typed, "it holds for a whole search", "give it one value")
    if not isinstance(value, IntervalSweep):
        return
    start, end = float(value.start or 0), float(value.end or 0)
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ConfigError(key, typed, "an interval has two finite ends", "give two numbers, as interval(0.01,0.5)")
    if start >= end:
        raise ConfigError(key, typed, "the first end is not below the second", f"write interval({value.end},{value.start})")
    if "log" in value.tags and start <= 0:
        problem = "a logarithmic scale has only numbers above 0"
        raise ConfigError(key, typed, problem, f"begin above 0, as tag(log,interval({end / 1000:g},{end:g}))")
    if unknown := value.tags - {"log"}:
        raise ConfigError(key, typed, f"there is no scale {', '.join(sorted(unknown))}", "write tag(log,interval(a,b))")


def candidates(override: Override) -> list[str]:
    """List the values of a searched key that are checked: both ends of an interval, all values of a list."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    return list(override.sweep_string_iterator())


@contextlib.contextmanager
def check_writable(config: Config) -> Iterator[None]:
    """Turn what the operating system says of the sweep's directory into a ConfigError."""
    try:
        yield
    except OSError as error:
        problem, fix = disk_problem(error, Path(config.output_root)), "choose another directory: output_root=..."
        raise ConfigError("output_root", config.output_root, problem, fix) from error


def open_study(config: Config, space: list[Override], directory: Path) -> Any:
    """Return the study in the sweep's directory of this space and all else that decides its values, made if there is none.
    Raises ConfigError. The directory's lock is held."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = directory.absolute() / "study.journal"
    for left in directory.glob("study.journal.lock*"):
        left.unlink()  # by a process that was killed: Optuna would wait for it
    repair_journal(file)
    storage = JournalStorage(JournalFileBackend(str(file)))
    direction: Any = config.sweep.direction
    name = study_name(config, space)
    pruner = build_pruner(config)
    return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True, pruner=pruner)


def repair_journal(file: Path) -> None:
    """Cut a journal back to its last whole line: who wrote on was killed, or the disk was full. Raises ConfigError
    for a journal that is damaged further up."""
    if not file.is_file():
        return
    whole = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.endswith(b"\n") and is_entry(line):
                whole += len(line)
                continue
            if stream.read().strip(b"\0\n"):
                problem = f"line {number} is damaged, and others follow"
                fix = "move the file away: a new search begins, and stages that are done are not trained again"
                raise ConfigError("study.journal", file, problem, fix)
            break
    if whole < file.stat().st_size:
        os.truncate(file, whole)


def is_entry(line: bytes) -> bool:
    """Whether a journal's line is an entry."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def study_name(config: Config, space: list[Override]) -> str:
    """Return the name of a study, which tells searches of one name apart: by their space, what is sought, and what decides
    the values."""
    searched = sorted(str(override.input_line) for override in space)
    fixed = [fingerprint(config, stage, {}) for stage in config.stages]
    identity = json.dumps([searched, config.sweep.objective, config.sweep.direction, fixed])
    return f"{config.sweep.objective} {hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def build_sampler(config: Config, trial: int) -> Any:
    """Return the sampler of a trial, seeded by its number: a study that is resumed proposes what the unbroken one would."""
    import optuna

    kind = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[config.sweep.sampler]
    return kind(seed=(config.seed + trial) % 2**32)


def suggest(trial: Any, override: Override) -> Any:
    """Return the trial's value of a searched key."""
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


def finish_trial(study: Any) -> int:
    """Count the trials that have a value, that were pruned, or whose point failed."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return sum(trial.state != TrialState.FAIL or trial.user_attrs.get("failed", False) for trial in trials)


def failed_state() -> Any:
    """Return Optuna's state of a trial without a value."""
    from optuna.trial import TrialState

    return TrialState.FAIL


def pruned_state() -> Any:
    """Return Optuna's state of a trial that was given up early."""
    from optuna.trial import TrialState

    return TrialState.PRUNED


def objective(point: Point, settings: Search) -> float | None:
    """Return the figure that is sought, of the last stage that has it; None if it is not finite. Raises ConfigError if
    none does: no other point would have it either."""
    found = {name: value for node in point.stages for name, value in node.directory.result().metrics.items()}
    if str(settings.objective) not in found:
        fix = f"choose one of {', '.join(sorted(found))}"
        raise ConfigError("sweep.objective", settings.objective, "the stages have no such figure", fix)
    value = found[str(settings.objective)]
    return value if math.isfinite(value) else None


def print_study(study: Any, config: Config, console: Console) -> None:
    """Print the best trial."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        console.print("no trial has a value")
        return
    best = study.best_trial
    values = " ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in best.params.items()
    )
    pruned = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    count = f"{finish_trial(study)}{f' ({pruned} pruned)' if pruned else ''}"
    console.print(f"best of {count}: {config.sweep.objective} {best.value:.4g} with {values}", soft_wrap=True)
