"""Diagnose reward models on held-out pairs: accuracy by length, margin and subset, calibration, what the scores follow,
probes of known weaknesses, and RewardBench from a local file.

    python -m rlhf evaluate-reward outputs/runs/latest                 # the reward model of a run, or its ensemble
    python -m rlhf evaluate-reward outputs/stages/reward-0123456789ab  # on the held-out pairs of its own data
    python -m rlhf evaluate-reward DIR DIR --ensemble                  # several, and their mean
    python -m rlhf evaluate-reward DIR data=ultrafeedback data.max_prompt_tokens=1024   # on other data
    python -m rlhf evaluate-reward DIR --policy DIR                    # and the policy's log-probabilities
    python -m rlhf evaluate-reward DIR --rewardbench filtered.parquet  # RewardBench 1 or 2, as published
    python -m rlhf evaluate-reward DIR gold=my.module:judge            # how often it agrees with a function
    python -m rlhf evaluate-reward DIR --json                          # one object for scripts
    python -m rlhf evaluate-reward outputs/stages/evaluate_reward-0123456789ab   # what a sweep's stage has found

A model is the directory of a run, a sweep, a stage or a model, or a hub id of a sequence classifier with one label. Probes
are made of the first 200 prompts (--probes N; 0: none). Overrides are those of `python -m rlhf`; without any of `data` the
data is that of the first model's stage. Results with their page are kept in outputs/evaluations, by all that decides them,
and read from there the next time. Exit codes: 0, 2 for bad input, or 130 if interrupted.
"""

import argparse
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import rlhf
from rlhf.cli.arguments import Arguments, run_verb, split_words
from rlhf.cli.reward_tables import show_diagnosis
from rlhf.config.checks import check_devices
from rlhf.config.directories import ABOUT_DATA, PAGE
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.points import compose_config
from rlhf.config.rewards import gold_term
from rlhf.config.schema import Config
from rlhf.config.terminal import Terminal
from rlhf.evaluation.reward.diagnosis import ENSEMBLE, Diagnosis
from rlhf.evaluation.reward.result import Kept, read_diagnoses, write_diagnoses
from rlhf.evaluation.targets import find_models
from rlhf.experiment.files import parse_json
from rlhf.experiment.fingerprint import content_id, hash_records, identify_function
from rlhf.experiment.graph import model_path
from rlhf.experiment.locations import locate
from rlhf.experiment.resolve import read_from
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.store import write_atomic

KEY = "evaluate-reward"
# The keys of `data` that say how a model reads a prompt and a response, whatever data they are of.
FORMATS = ("template", "format", "prompt_format", "response_format")


def main(arguments: list[str]) -> int:
    """Print what the arguments ask for; returns the exit code."""
    return run_verb(evaluate, arguments, str(__doc__))


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the models, the overrides and the flags. Raises ConfigError for what cannot be read."""
    parser = Arguments("evaluate-reward")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--policy")
    parser.add_argument("--rewardbench")
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--ensemble", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    given.models, given.overrides = split_words(given.words)
    if not given.models:
        raise ConfigError("argument", "none", "no reward model is named", "name one, as outputs/stages/reward-0123456789ab")
    if given.probes < 0:
        raise ConfigError("argument", f"--probes {given.probes}", "it is no number of prompts", "give 0 or more")
    return given


def evaluate(arguments: list[str], console: Terminal) -> int:
    """Diagnose the models, or find what was found of them, and print it; returns the exit code. Raises ConfigError."""
    given = read_arguments(arguments)
    directory = Path(given.models[0]).expanduser()
    kept = read_diagnoses(directory)
    if kept is None:
        directory, kept = find_or_diagnose(given)
    elif len(given.words) > 1 or given.policy or given.rewardbench or given.ensemble:
        fix = "name that evaluation alone, or the models that are to be evaluated"
        raise ConfigError("argument", given.models[0], "it is an evaluation that is done, which nothing changes", fix)
    if given.json:
        print(json.dumps(kept.describe()))
        return 0
    for name, diagnosis in kept.diagnoses.items():
        console.print(show_diagnosis(name, diagnosis, console.width), "", soft_wrap=False)
    if (directory / PAGE).is_file():
        console.print(f"page: {directory / PAGE}", highlight=False)
    return 0


def find_or_diagnose(given: argparse.Namespace) -> tuple[Path, Kept]:
    """Diagnose models, unless that was done before; returns the directory of their evaluation, and what it holds."""
    found = [list(find_models(name, KEY, scorers=True)) for name in given.models]
    models = name_models([(target.stage or target.name, model_path(target.path)) for own in found for target in own])
    several = [name for name, own in zip(given.models, found, strict=True) if len(own) > 1]
    is_ensemble = len(models) > 1 and (given.ensemble or any(locate(name, KEY).is_run for name in several))
    config = choose_config(next(iter(models.values())), given.overrides)
    content = identify(config, models, given, is_ensemble)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    directory = Path(config.output_root) / "evaluations" / f"reward-{digest[:12]}"
    kept = read_diagnoses(directory)
    if kept is None:
        diagnoses = diagnose_models(config, models, given, is_ensemble)
        save(directory, digest, content, diagnoses)
        kept = Kept(digest, content["models"], diagnoses)
    return directory, kept


def name_models(found: list[tuple[str, str]]) -> dict[str, str]:
    """Return models by their names, or, where two have one name, by their paths; a model that is named twice once."""
    paths = dict.fromkeys(path for _, path in found)
    named = {path: name for name, path in found}
    counts = Counter(named[path] for path in paths)
    return {named[path] if counts[named[path]] == 1 and named[path] != ENSEMBLE else path: path for path in paths}


def choose_config(model: str, overrides: list[str]) -> Config:
    """Return the configuration of the overrides, on one device, with what the stage that made the model says: the format of
    prompts, the precision, and, without any override of `data`, the data and the seed."""
    config = compose_config("stage=reward", *overrides)
    config = replace(config, hardware=replace(config.hardware, nodes=1, gpus_per_node=1))
    check_devices(config)
    file = StageDirectory(Path(model).parent).spec_file
    if not file.is_file():
        return config
    spec, typed = parse_json(file.read_text()), {word.lstrip("+~").partition("=")[0] for word in overrides}
    made = spec["config"]
    chosen = {name.partition(".")[0] for name in typed}
    if "precision" not in chosen:
        config = replace(config, precision=take_over(config.precision, made["precision"], model))
    if "data" not in chosen:
        config = replace(config, data=take_over(config.data, made["data"], model), seed=made["seed"])
        return read_made_data(config, spec.get("inputs", {}).get("data"), model)
    formats = {key: made["data"][key] for key in FORMATS if f"data.{key}" not in typed and key in made["data"]}
    return replace(config, data=take_over(config.data, formats, model))


def read_made_data(config: Config, path: str | None, model: str) -> Config:
    """Return the configuration with the data set in a directory, where a stage made the one that a model was trained on.
    Raises ConfigError where it is gone."""
    if path is not None and not (Path(path) / ABOUT_DATA).is_file():
        fix = "name the data, as data=hh-rlhf"
        raise ConfigError(KEY, model, f"the data that it was trained on is gone from {path}", fix)
    return read_from(config, path)


def take_over(section: Any, stored: dict[str, Any], model: str) -> Any:
    """Return a group of the configuration with the values of a stage's. Raises ConfigError for keys of another release."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), stored))
    except OmegaConfBaseException as error:
        problem = f"another release trained it: {first_line(error)}"
        raise ConfigError(KEY, model, problem, "name the data, as data=hh-rlhf") from error


def identify(config: Config, models: Mapping[str, str], given: argparse.Namespace, is_ensemble: bool) -> dict[str, Any]:
    """Return all that decides the results."""
    from rlhf.data.artifact import identify_data

    gold = gold_term(config)
    package = Path(rlhf.__file__).parent
    code = b"".join(file.read_bytes() for file in sorted((package / "evaluation" / "reward").glob("*.py")))
    return {
        "models": {name: content_id(path, KEY) for name, path in models.items()},
        "ensemble": is_ensemble,
        "policy": None if given.policy is None else content_id(model_path(given.policy), "--policy"),
        "data": identify_data(config),
        "dtype": config.precision.dtype,
        "rewardbench": hash_records(given.rewardbench),
        "probes": given.probes,
        "gold": None if gold is None else {**asdict(gold), "function": identify_function(gold.function, "gold")},
        "code": hashlib.sha256(code).hexdigest(),
    }


def diagnose_models(
    config: Config, models: Mapping[str, str], given: argparse.Namespace, is_ensemble: bool
) -> dict[str, Diagnosis]:
    """Diagnose the models, and, of several members, their mean."""
    os.environ.setdefault("DS_ACCELERATOR", config.hardware.device)

    from rlhf.evaluation.reward.evaluate import Asked, evaluate_reward_models  # which imports torch
    from rlhf.models.source import Source
    from rlhf.runtime.distributed import silence_libraries

    silence_libraries()
    policy = None if given.policy is None else Source(model_path(given.policy), "--policy")
    asked = Asked(policy, given.rewardbench, given.probes, is_ensemble)
    return evaluate_reward_models(config, {name: Source(path, KEY) for name, path in models.items()}, asked)


def save(directory: Path, digest: str, content: dict[str, Any], diagnoses: Mapping[str, Diagnosis]) -> None:
    """Keep the diagnoses with all that decided them, and their page."""
    from rlhf.report.reward_model import write_reward_page

    write_atomic(directory / PAGE, write_reward_page(diagnoses))
    write_diagnoses(directory, digest, content, diagnoses)
