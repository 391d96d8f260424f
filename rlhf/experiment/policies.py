"""Which policy a path means: the last one of a run or a point, a stage's, or the model of a directory or hub id itself."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.experiment.files import as_mapping, parse_json
from rlhf.experiment.graph import model_path
from rlhf.experiment.locations import list_stages, locate
from rlhf.experiment.stage_directory import StageDirectory

# What the model is called that a policy's first stage started from.
BASE = "base"
# What an error proposes.
EXAMPLES = "give outputs/runs/latest, a stage's directory, a model's directory or a hub id"


@dataclass(frozen=True)
class Policy:
    """A language model that answers.

    Attributes:
        name: What people call it: its stage, as ppo, or the last part of its path.
        given: The path or hub id that it was named by.
        path: The directory that `transformers` loads, a GGUF file, or a hub id.
        stage: The directory of the stage that made it; None where no stage did, as far as is known.
        run_reward: The directory of the reward stage of the run that it was found in, if that has one.
    """

    name: str
    given: str
    path: str
    stage: StageDirectory | None = None
    run_reward: str | None = None

    @cached_property
    def spec(self) -> Mapping[str, Any]:
        """The specification that the stage which made it was started with; empty where no stage did."""
        return {} if self.stage is None else read_spec_values(self.stage)

    @property
    def rewards(self) -> dict[str, str]:
        """The directories of the reward models that it was trained on, by their names among a stage's inputs; of a policy
        that was trained without, that of its run."""
        given = as_mapping(self.spec.get("inputs"))
        found = {name: str(path) for name, path in given.items() if name == "reward" or name.startswith("reward ")}
        known = {} if self.stage is None else {name: moved_path(path, self.stage) for name, path in found.items()}
        return known or ({} if self.run_reward is None else {"reward": self.run_reward})


def find_policy(given: str, key: str) -> Policy:
    """Return the policy that a path or hub id means; `key` names it in errors.

    Raises:
        ConfigError: The path is a sweep, a stage that is not done, or one that makes no language model.
    """
    found = locate(given, key)
    if found.path is None:
        return Policy(given, given, given)
    if found.is_run:
        return policy_of_run(found.path, given, key)
    if found.runs:
        fix = f"give one of its points, as {found.runs[0]}"
        raise ConfigError(key, given, f"it holds {len(found.runs)} runs or points", fix)
    if found.stage is not None and found.path in (found.stage.path, found.stage.model):
        return policy_of_stage(found.stage, given, key)
    return Policy(found.path.resolve().name, given, model_path(given))


def policy_of_run(run: Path, given: str, key: str) -> Policy:
    """Return the last policy of a run. Raises ConfigError where no stage makes one, or that one is not done."""
    stages = list_stages(run)
    policies = [stage for stage in stages if makes_policy(stage.stage)]
    if not policies:
        made = ", ".join(dict.fromkeys(stage.stage for stage in stages)) or "none"
        raise ConfigError(key, given, f"none of its stages ({made}) makes a language model", EXAMPLES)
    rewards = [stage for stage in stages if stage.done and makes_scorer(stage.stage)]
    return replace(policy_of_stage(policies[-1], given, key), run_reward=str(rewards[0].model) if rewards else None)


def policy_of_stage(stage: StageDirectory, given: str, key: str) -> Policy:
    """Return the policy that a stage made. Raises ConfigError for a stage that is not done, or that makes none."""
    if not makes_policy(stage.stage):
        raise ConfigError(key, given, f"the stage {stage.stage} makes no language model", EXAMPLES)
    if not stage.done:
        state = stage.read_state().name
        raise ConfigError(key, given, f"{stage.path.name} is not done ({state})", "run it to its end first")
    return Policy(stage.stage, given, str(stage.model), stage)


def makes_policy(stage: str) -> bool:
    """Whether a kind of stage makes a language model."""
    try:
        return any(not card.scorer for card in kind_of(stage).cards.values())
    except (ImportError, AttributeError):  # of another package, which is not here
        return False


def makes_scorer(stage: str) -> bool:
    """Whether a kind of stage makes reward models alone."""
    cards = kind_of(stage).cards.values()
    return bool(cards) and all(card.scorer for card in cards)


def find_start(policy: Policy, word: str, key: str) -> Policy:
    """Return the model that a policy comes from: of the name of a kind of stage, as sft, that of the nearest such stage, of
    `base` the one that the first stage started from. Raises ConfigError where it is not known, or was never saved."""
    fix = f"give its path, as {key}=DIR, or a hub id"
    if policy.stage is None:
        raise ConfigError(key, word, f"no stage of this program made {policy.given}", fix)
    first = policy
    while first.stage is not None and first.name != word:
        inputs = kind_of(first.stage.stage).inputs
        start = as_mapping(first.spec.get("inputs")).get(inputs[0].name) if inputs else None
        if start is None:
            break
        first = find_policy(moved_path(str(start), first.stage), key)
    if word != BASE:
        if first.name != word:
            raise ConfigError(key, word, f"{policy.given} does not come from a stage {word}", fix)
        return first
    if first.stage is None:
        return replace(first, name=BASE)
    path = as_mapping(as_mapping(first.spec.get("config")).get("model")).get("path")
    if path is None:
        raise ConfigError(key, word, f"{first.stage.path.name} started from random weights", fix)
    return replace(find_policy(str(path), key), name=BASE)


def moved_path(model: str, stage: StageDirectory) -> str:
    """Return where an input of a stage is now: where it was, or beside the stage, if the output directory was moved."""
    path = Path(model)
    beside = stage.path.parent / path.parent.name / path.name
    return str(beside) if not path.exists() and beside.exists() else model


def read_spec_values(stage: StageDirectory) -> Mapping[str, Any]:
    """Return what a stage's spec.json holds; empty where it cannot be read."""
    try:
        return as_mapping(parse_json(stage.spec_file.read_text()))
    except (OSError, ValueError):
        return {}


def with_saved_keys(config: Config, spec: Mapping[str, Any], group: str, typed: Collection[str] = ()) -> Config:
    """Return a configuration with the keys of a group that a stage was run with, except the keys in `typed`. Keys that hold
    groups are left as they are, and so are those that this release does not know."""
    ours, saved = getattr(config, group), as_mapping(as_mapping(spec.get("config")).get(group))
    plain = {field.name for field in fields(ours) if not is_dataclass(getattr(ours, field.name))}
    known = {name: value for name, value in saved.items() if name in plain and not isinstance(value, dict)}
    kept = {name: value for name, value in known.items() if f"{group}.{name}" not in typed}
    return replace(config, **{group: replace(ours, **kept)})
