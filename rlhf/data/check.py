"""Whether a data set has what the stages need, told before the first of them starts."""

from collections.abc import Iterator

from rlhf.catalog.stage import Counts, kind_of
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Training
from rlhf.data.dataset import Split
from rlhf.data.records import file_split, hub_split
from rlhf.experiment.fingerprint import content_id


def count_records(split: Split) -> Counts:
    """Count the records of a split."""
    answers: dict[str, set[str]] = {}
    for comparison in split.comparisons:
        answers.setdefault(comparison.prompt, set()).update((comparison.chosen, comparison.rejected))
    most = max((len(found) for found in answers.values()), default=2)
    return Counts(len(split.demonstrations), len(split.comparisons), len(answers), len(split.prompts), most, split.left_out)


# What is known of data sets, by their origins, contents and columns: the points of a sweep read the same ones.
KNOWN: dict[str, Counts] = {}


def count_part(config: Config, part: str) -> Counts:
    """The records of the training or the held-out part; one that stays as it is is read once, and the demo's never."""
    data = config.data
    if data.source == "demo":
        from rlhf.data.demo import demo_counts

        made, kept = demo_counts(data.demo), data.demo.heldout_prompts
        train = Counts(made.demonstrations, made.comparisons, made.prompts, made.prompts, made.answers)
        return train if part == "train" else Counts(kept, kept, kept, kept)
    read = file_split if data.source == "files" else hub_split
    path = getattr(data.files, part)
    about = f"{part} {path} {content_id(path, f'data.files.{part}')} {data.hub} {data.columns}"
    if about not in KNOWN:
        KNOWN[about] = count_records(read(config, part))
    return KNOWN[about]


def resolve_part(config: Config, part: str) -> tuple[str, str]:
    """The key and the value that name the training or the held-out part."""
    if config.data.source == "files":
        return f"data.files.{part}", str(getattr(config.data.files, part))
    return ("data.hub.name", str(config.data.hub.name)) if config.data.source == "hub" else ("data.source", "demo")


def record_notes(config: Config) -> Iterator[str]:
    """Tell what is left out of the records."""
    for part in ("train", "heldout"):
        for kind, number in count_part(config, part).left_out.items():
            yield f"{'='.join(resolve_part(config, part))}: {number} {kind} left out"


def record_problems(config: Config, stage: str) -> Iterator[ConfigError]:
    """Find what the data lacks for a stage: a batch of training records, steps beyond the warm-up, any held-out record."""
    kind = kind_of(stage)
    if kind.records is None or kind.section is None:
        return
    train, heldout = (kind.records(config, count_part(config, part)) for part in ("train", "heldout"))
    training: Training = getattr(config, kind.section)
    size, copies, found = getattr(training, kind.batch_key), kind.copies(config), train.number
    if found < size // copies:
        problem = f"a batch takes {size // copies} {train.name}, and {resolve_part(config, 'train')[1]} has {found}"
        fix = f"give at most {found * copies}, or more records" if found else "add some, or check data.columns"
        yield ConfigError(f"{kind.section}.{kind.batch_key}", size, problem, fix)
    elif training.max_steps is None:
        steps = training.epochs * (found * copies // size) * kind.updates(config)
        yield from warmup_problems(stage, kind.section, training, steps)
    if heldout.number == 0:
        problem = f"it has no {heldout.evaluated}, which the {stage} stage is measured on"
        yield ConfigError(*resolve_part(config, "heldout"), problem, "add some, or check data.columns")


def warmup_problems(stage: str, section: str, training: Training, steps: int) -> Iterator[ConfigError]:
    """Find a warm-up that takes all of so many steps, so that the learning rate never reaches its peak."""
    if training.warmup_steps >= steps > 0:
        problem = f"all {steps} steps of the {stage} stage are within it, so that the learning rate never reaches its peak"
        yield ConfigError(f"{section}.warmup_steps", training.warmup_steps, problem, f"give at most {steps - 1}")
