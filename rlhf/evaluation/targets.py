"""Which models a command names: those of a run, of a sweep, of a stage, of a directory, or of the hub. No torch."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.directories import find_model
from rlhf.config.errors import ConfigError
from rlhf.experiment.files import parse_json
from rlhf.experiment.locations import Location, list_stages, locate
from rlhf.experiment.stage_directory import StageDirectory

KEY = "evaluate"


@dataclass(frozen=True)
class Target:
    """A model to evaluate.

    Attributes:
        name: What tables call it.
        path: Its directory, or its hub id.
        is_scorer: Whether it is a reward model, not a policy.
        stage: The stage that trained it, as in the name of its directory; "" where that is not known.
        config: The keys of that stage as its spec.json has them, perhaps of another release; None where it is not known.
        reward: The reward model that its stage, or its run, has; None where there is none.
    """

    name: str
    path: str
    is_scorer: bool = False
    stage: str = ""
    config: Mapping[str, Any] | None = None
    reward: str | None = None


def find_targets(words: list[str], known: Mapping[str, Sequence[Target]] = MappingProxyType({})) -> list[Target]:
    """Return the models that words name, each once, under names of their own; of some words they are `known`. Raises
    ConfigError for a word that names none, and for policies beside reward models."""
    named = (known[word] if word in known else find_models(word) for word in words)
    found = {target.path: target for targets in named for target in targets}
    counts = Counter(target.name for target in found.values())
    told = [
        target if counts[target.name] == 1 else replace(target, name=f"{target.name} {identify(target)}")
        for target in found.values()
    ]
    scorers = [target for target in told if target.is_scorer]
    if scorers and len(scorers) < len(told):
        problem = "it is a reward model, and others that are named are policies"
        fix = "evaluate them apart; a policy is judged with ppo.reward=DIR"
        raise ConfigError(KEY, scorers[0].path, problem, fix)
    return told


def identify(target: Target) -> str:
    """Return what tells a model from another of its name."""
    return target.stage.rpartition("-")[2] or target.path


def find_models(word: str, key: str = KEY, scorers: bool = False) -> Iterator[Target]:
    """Yield the models that a word names: of a run or a sweep its policies alone, which its reward models judge, or
    (`scorers`) its reward models alone. Raises ConfigError, which names the `key`, where there is none."""
    found = locate(word, key)
    if found.path is None:
        yield Target(word, word)
    elif found.runs:
        yield from find_in_runs(found, key, scorers)
    elif found.stage is None:
        yield Target(found.path.resolve().name, str(found.path), is_classifier(find_model(found.path)))
    elif not found.stage.done:
        raise ConfigError(key, word, "this stage is not done", "run it to its end first")
    else:
        yield read_target(found.path, found.stage.path)


def find_in_runs(location: Location, key: str, scorers: bool) -> Iterator[Target]:
    """Yield the policies or the reward models of a run, or of the points of a sweep. Raises ConfigError where none is
    done."""
    is_found = False
    for run in location.runs:
        done = [stage for stage in list_stages(run) if stage.done and kind_of(stage.stage).cards]
        targets = [read_target(stage.path, stage.path) for stage in done]
        rewards = [target.path for target in targets if target.is_scorer]
        for target in (target for target in targets if target.is_scorer == scorers):
            is_found = True
            is_shared = location.is_run or not kind_of(target.stage.rpartition("-")[0]).needs
            name = target.name if is_shared else f"{target.name} {run.name}"
            yield replace(target, name=name, reward=target.reward or (rewards[0] if rewards else None))
    if not is_found:
        told = "reward model" if scorers else "policy"
        raise ConfigError(key, location.given, f"no {told} of it is done", "run it to its end first")


def read_target(path: Path, directory: Path) -> Target:
    """Return the model at a path in the `directory` of the stage that saved it."""
    spec = parse_json(StageDirectory(directory).spec_file.read_text())
    name = spec["stage"] if path in (directory, directory / "model") else f"{spec['stage']}/{path.name}"
    stage = f"{spec['stage']}-{spec['fingerprint'][:12]}"
    return Target(name, str(path), is_classifier(find_model(path)), stage, spec["config"], spec["inputs"].get("reward"))


def is_classifier(model: Path) -> bool:
    """Whether the model in a directory is a sequence classifier, by its config.json. Raises ConfigError where there is
    none."""
    try:
        settings = json.loads((model / "config.json").read_text())
        named = settings.get("architectures") or ()
        return any("Classification" in str(name) for name in named) or "reward_scale" in settings
    except (OSError, ValueError, AttributeError) as error:
        if (model / "adapter_config.json").is_file():
            return False
        fix = "give a run, a sweep, a stage, a directory with config.json, or a hub id"
        raise ConfigError(KEY, str(model), "it holds no model", fix) from error
