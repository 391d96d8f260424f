"""Push a saved model with its card to the Hugging Face hub.

    python -m rlhf push outputs/runs/latest me/demo              # the run's last policy, to a private repository
    python -m rlhf push outputs/stages/reward-0123456789ab me/demo-reward --public
    python -m rlhf push DIR me/demo --revision beta=0.1          # to a branch

DIR is a run or a point of a sweep, a finished stage, or a model's directory. A repository that there is already keeps its
visibility. The token is that of HF_TOKEN, or of `hf auth login`. `hub.push=me/demo-{stage}-{point}` pushes what a command
trains.
"""

from pathlib import Path
from typing import Any

from rlhf.cli.arguments import Arguments, run_verb
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Publish
from rlhf.config.terminal import Terminal
from rlhf.experiment.locations import locate
from rlhf.experiment.policies import find_policy
from rlhf.tracking.hub import check_access, check_repo, try_push

FIX = "give a run, a finished stage or a model's directory"
MODEL_FILES = ("config.json", "adapter_config.json")


def main(arguments: list[str]) -> int:
    """Push what the arguments name; returns the exit code: 0, 1 if the hub refuses it, 2 for bad input."""
    return run_verb(push, arguments, str(__doc__))


def push(arguments: list[str], console: Terminal) -> int:
    """Push what the arguments name; returns the exit code. Raises ConfigError."""
    parser = Arguments("push")
    parser.add_argument("directory")
    parser.add_argument("repo")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--revision")
    given: Any = parser.parse_args(arguments)
    model, name = find_model(given.directory)
    check_repo("push", given.repo)
    check_access("push", given.repo)
    settings = Publish(push=given.repo, private=not given.public, revision=given.revision)
    address, problem = try_push(model, given.repo, settings, f"{name}, by rlhf")
    if problem is not None:
        Terminal(stderr=True, soft_wrap=True).print_errors(problem)
        return 1
    console.print(f"{model}: {address}")
    return 0


def find_model(given: str) -> tuple[Path, str]:
    """Return the directory of the model that a path means, and what made it. Raises ConfigError."""
    found = locate(given, "push")
    if found.path is None:
        raise ConfigError("push", given, "there is no such directory", FIX)
    stage = find_policy(given, "push").stage if found.runs else found.stage
    if stage is not None and (found.runs or found.path in (stage.path, stage.model)):
        if not stage.done:
            raise ConfigError("push", given, "the stage is not done", "run it to its end first")
        if (problem := stage.damage()) is not None or not stage.model.is_dir():
            fix = "remove the directory, and the stage is trained again"
            raise ConfigError("push", given, problem or "the stage makes no model", fix)
        return stage.model, stage.path.name
    if not any((found.path / name).is_file() for name in MODEL_FILES):
        raise ConfigError("push", given, "it holds no model", FIX)
    return found.path, found.path.resolve().name
