"""Whether a data set has what the stages need, told before the first of them starts."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.data.records import Split, file_split
from rlhf.experiment.fingerprint import identity


@dataclass(frozen=True)
class Counts:
    """Records of a file, before any is left out for its length, and how many of a kind have been left out."""

    demonstrations: int
    comparisons: int
    compared_prompts: int
    prompts: int
    left_out: dict[str, int]


def count_records(split: Split) -> Counts:
    """Count the records of a split."""
    compared = len({comparison.prompt for comparison in split.comparisons})
    return Counts(len(split.demonstrations), len(split.comparisons), compared, len(split.prompts), split.left_out)


# What is known of files, by their paths, contents and columns: the points of a sweep read the same ones.
KNOWN: dict[str, Counts] = {}


def counts_of(config: Config, part: str) -> Counts:
    """The records of the training or the held-out file; a file that stays as it is is read once."""
    path = getattr(config.data.files, part)
    about = f"{path} {identity(path, 'data.files')} {config.data.columns}"
    if about not in KNOWN:
        KNOWN[about] = count_records(file_split(config, part))
    return KNOWN[about]


def record_notes(config: Config) -> Iterator[str]:
    """Tell what is left out of the files of records."""
    for part in ("train", "heldout"):
        for kind, number in counts_of(config, part).left_out.items():
            yield f"data.files.{part}={getattr(config.data.files, part)}: {number} {kind} left out"


def record_problems(config: Config, stage: str) -> Iterator[ConfigError]:
    """Find what the files of records lack for a stage: a batch of training records, or any held-out record."""
    train, heldout, files = counts_of(config, "train"), counts_of(config, "heldout"), config.data.files
    kind, found, evaluated = {
        "sft": ("demonstrations", train.demonstrations, heldout.demonstrations),
        "reward": ("pairs", train.comparisons, heldout.comparisons),
        "ppo": ("prompts", train.prompts, heldout.prompts),
    }[stage]
    if stage == "reward" and config.reward.grouped:
        kind, found = "prompts with pairs", train.compared_prompts
    key = "rollout_batch_size" if stage == "ppo" else "batch_size"
    size, copies = getattr(getattr(config, stage), key), config.rollout.samples_per_prompt if stage == "ppo" else 1
    if found < size // copies:
        problem = f"a batch takes {size // copies} {kind}, and {files.train} has {found}"
        fix = f"give at most {found * copies}, or more records" if found else "add some, or check data.columns"
        yield ConfigError(f"{stage}.{key}", size, problem, fix)
    if evaluated == 0:
        problem = f"it has no {kind.partition(' with ')[2] or kind}, which the {stage} stage is measured on"
        yield ConfigError("data.files.heldout", files.heldout, problem, "add some, or check data.columns")
