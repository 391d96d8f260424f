"""Convert a reward model of DeepSpeed-Chat.

    python -m rlhf convert-reward output/step2 models/reward    # then ppo.reward=models/reward

The first directory is what step 2 of DeepSpeed-Chat wrote (config.json, pytorch_model.bin with rwtransformer.* and
v_head.weight, the tokenizer); the second is new or empty. The converted model gives the same scores.
"""

from pathlib import Path

from rlhf.cli.arguments import run_verb
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal


def main(arguments: list[str]) -> int:
    """Convert what the arguments name; returns the exit code: 0, or 2 for bad input."""
    return run_verb(convert, arguments, str(__doc__))


def convert(arguments: list[str], console: Terminal) -> None:
    """Convert what the arguments name. Raises ConfigError."""
    source, output = read_arguments(arguments)
    from rlhf.models.convert import convert_reward_model  # which imports torch

    convert_reward_model(source, output)
    console.print(f"{output}: use it as ppo.reward={output}", highlight=False)


def read_arguments(arguments: list[str]) -> tuple[Path, Path]:
    """Return the two directories. Raises ConfigError where they are not two, or the second one holds something."""
    if len(arguments) != 2:
        fix = "write `python -m rlhf convert-reward FROM TO`"
        raise ConfigError("convert-reward", " ".join(arguments) or "nothing", "it takes two directories", fix)
    source, output = (Path(word).expanduser() for word in arguments)
    if not source.is_dir():
        raise ConfigError("convert-reward", source, "there is no such directory", "give what step 2 wrote")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError("convert-reward", output, "it holds something already", "give a new directory")
    return source, output
