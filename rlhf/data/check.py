"""Whether a data set has what the stages need, told before the first of them starts."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rlhf.catalog.stage import Counts, kind_of
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Training
from rlhf.config.terminal import plural
from rlhf.data.dataset import Prompt, Split
from rlhf.data.files import Origin
from rlhf.data.records import load_part, name_origin, named_part
from rlhf.data.shapes import SHAPES
from rlhf.experiment.fingerprint import hash_records


def count_records(split: Split) -> Counts:
    """Count the records of a split."""
    answers: dict[Prompt, set[str]] = {}
    for comparison in split.comparisons:
        answers.setdefault(comparison.prompt, set()).update((comparison.chosen, comparison.rejected))
    most = max((len(found) for found in answers.values()), default=2)
    return Counts(
        len(split.demonstrations), len(split.comparisons), len(answers), len(split.prompts), most, split.left_out,
        split.shape, split.rows,
    )  # fmt: skip


# What the name of a licence holds that restricts commercial use.
RESTRICTED = ("-nc", "non-commercial", "not to compete")

# What is known of data sets, by their origins, contents and columns: the points of a sweep read the same ones.
KNOWN: dict[str, Counts] = {}


def count_part(config: Config, part: str) -> Counts:
    """Return the records of the training or the held-out part; one that stays as it is is read once, and the demo's
    never."""
    data = config.data
    if data.source == "demo":
        from rlhf.data.demo import demo_counts

        made, kept = demo_counts(data.demo), data.demo.heldout_prompts
        train = Counts(made.demonstrations, made.comparisons, made.prompts, made.prompts, made.answers)
        return train if part == "train" else Counts(kept, kept, kept, kept)
    origin = name_origin(data, part)
    content = hash_records(getattr(data.files, named_part(data, part))) if data.source == "files" else origin.value
    about = f"{part} {content} {config.seed if data.heldout_fraction else ''} {asdict(data)}"
    if about not in KNOWN:
        KNOWN[about] = count_records(load_part(config, part))
    return KNOWN[about]


def count_without_download(config: Config, part: str) -> Counts | None:
    """Return the records of a part, of a hub data set as many as rows are published, less the share that is held out; None
    where that is not known, or a row is no record, as in conversation trees."""
    data = config.data
    if data.source != "hub":
        return count_part(config, part)
    share, source = data.heldout_fraction, "train" if data.heldout_fraction is not None else part
    rows: int | None = getattr(data.hub, f"{source}_rows")
    shape = SHAPES.get(data.converter)
    if rows is None or (shape is not None and shape.gather is not None):
        return None
    if share is not None:
        rows = round(rows * (share if part == "heldout" else 1.0 - share))
    return Counts(rows, rows, rows, rows)


def name_part(config: Config, part: str) -> Origin:
    """Return the key and the value that name the training or the held-out part."""
    return Origin("data.source", "demo") if config.data.source == "demo" else name_origin(config.data, part)


def record_notes(config: Config) -> Iterator[str]:
    """Tell how the data set is read, what is left out of it, and what is doubtful of it."""
    data = config.data
    for part in ("train", "heldout"):
        counts, origin = count_part(config, part), name_origin(data, part)
        share = " (held out)" if data.heldout_fraction is not None and part == "heldout" else ""
        where = f"{origin.key}={origin.value}{share}"
        made = ("demonstration", counts.demonstrations), ("pair", counts.comparisons), ("prompt", counts.prompts)
        numbers = ", ".join(plural(number, noun, ",") for noun, number in made)
        yield f"{where}: {plural(counts.rows, 'row', ',')} read as {counts.shape}: {numbers}"
        for kind, number in counts.left_out.items():
            yield f"{where}: {number} {kind} left out"
    yield from record_warnings(config)


def record_warnings(config: Config) -> Iterator[str]:
    """Tell what is doubtful of the data set: another number of rows than published, a licence that restricts its use."""
    data = config.data
    for part in ("train", "heldout"):
        counts, origin = count_part(config, part), name_origin(data, part)
        published = getattr(data.hub, f"{part}_rows")
        if published is not None and data.heldout_fraction is None and published != counts.rows:
            where = f"{origin.key}={origin.value}"
            yield f"{where}: published are {published} rows; the data set has changed, or a part of it is missing"
    licence = data.hub.licence or ""
    if any(word in licence.lower() for word in RESTRICTED):
        yield f"data.hub.name={data.hub.name}: the licence restricts commercial use: {licence}"


def record_problems(config: Config, stage: str) -> Iterator[ConfigError]:
    """Find what the data lacks for a stage, before any record is left out for its length."""
    kind = kind_of(stage)
    if kind.records is not None:
        numbers = {part: kind.records(config, count_part(config, part)).number for part in ("train", "heldout")}
        yield from find_lacks(config, stage, numbers, {})


def find_lacks(
    config: Config, stage: str, numbers: Mapping[str, int], dropped: Mapping[str, Mapping[str, int]]
) -> Iterator[ConfigError]:
    """Find what so many training and held-out records (`train`, `heldout`) lack for a stage: a batch, steps beyond the
    warm-up, any held-out record. `dropped` are those that are left out, by the part and the reason."""
    kind = kind_of(stage)
    if kind.records is None or kind.section is None:
        return
    named, training = kind.records(config, Counts(0, 0, 0, 0)), getattr(config, kind.section)
    size, copies, found = getattr(training, kind.batch_key), kind.copies(config), numbers["train"]
    told = {part: f" that fit ({describe_dropped(reasons)})" for part, reasons in dropped.items() if reasons}
    more = "add some, or check data.columns and data.max_prompt_tokens" if told else "add some, or check data.columns"
    if found < size // copies:
        problem = f"a batch takes {size // copies} {named.name}, and {name_part(config, 'train').value} has {found}"
        fix = f"give at most {found * copies}, or more records" if found else more
        yield ConfigError(f"{kind.section}.{kind.batch_key}", size, problem + told.get("train", ""), fix)
    elif training.max_steps is None:
        steps = training.epochs * (found * copies // size) * kind.updates(config)
        yield from warmup_problems(stage, kind.section, training, steps)
    if numbers["heldout"] == 0:
        problem = f"it has no {named.evaluated}{told.get('heldout', '')}, which the {stage} stage is measured on"
        where = name_part(config, "heldout")
        yield ConfigError(where.key, where.value, problem, more)


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """Write how many records are left out for which reason."""
    return ", ".join(f"{number:,} {reason}" for reason, number in dropped.items())


def warmup_problems(stage: str, section: str, training: Training, steps: int) -> Iterator[ConfigError]:
    """Find a warm-up that takes all of so many steps, so that the learning rate never reaches its peak."""
    if training.warmup_steps >= steps > 0:
        problem = f"all {steps} steps of the {stage} stage are within it, so that the learning rate never reaches its peak"
        yield ConfigError(f"{section}.warmup_steps", training.warmup_steps, problem, f"give at most {steps - 1}")
