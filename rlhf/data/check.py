"""Whether a data set has what the stages need, told before the first of them starts."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from rlhf.catalog.stage import Counts, SetCounts, kind_of
from rlhf.config.derive import count_batches
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Member, Training
from rlhf.config.sources import Source, list_sources
from rlhf.config.terminal import plural
from rlhf.data.dataset import Prompt, Split
from rlhf.data.mixtures import count_taken
from rlhf.data.records import load_part, name_part
from rlhf.data.shapes import SHAPES
from rlhf.experiment.fingerprint import hash_records
from rlhf.experiment.resolve import select_share


def count_records(split: Split) -> Counts:
    """Count the records of a split."""
    answers: dict[Prompt, set[str]] = {}
    for comparison in split.comparisons:
        answers.setdefault(comparison.prompt, set()).update((comparison.chosen, comparison.rejected))
    most = max((len(found) for found in answers.values()), default=2)
    kinds: tuple[list[Any], ...] = (split.demonstrations, split.comparisons)
    desirable = split.labelled.count_desirable()
    return Counts(
        len(split.demonstrations), len(split.comparisons), len(answers), len(split.prompts), most, split.left_out,
        split.shape, split.rows, sum(len(records) - len(set(records)) for records in kinds), split.sets,
        desirable, len(split.labelled) - desirable,
    )  # fmt: skip


# What a set has of each kind, where it is told how much of that a mixture takes.
NOUNS = {"demonstrations": "demonstration", "comparisons": "paired record", "prompts": "prompt"}
# What the name of a licence holds that restricts commercial use.
RESTRICTED = ("-nc", "non-commercial", "not to compete")

# What is known of the parts of data sets, by all that decides them: the points of a sweep read the same ones.
KNOWN: dict[str, Counts] = {}


def count_part(config: Config, part: str) -> Counts:
    """Return the records of the training or the held-out part; one that stays as it is is read once, and the demo's
    never."""
    data = config.data
    if data.source == "demo":
        from rlhf.data.demo import demo_counts

        made, kept = demo_counts(data.demo), data.demo.heldout_prompts
        train = Counts(
            made.demonstrations, made.comparisons, made.prompts, made.prompts, made.answers, desirable=made.comparisons,
            undesirable=made.comparisons,
        )  # fmt: skip
        return train if part == "train" else Counts(kept, kept, kept, kept, desirable=kept, undesirable=kept)
    sources = [source for source in list_sources(data) if source.has_part(part)]
    content = [source.describe(part) if source.is_on_hub else hash_records(source.paths(part)) for source in sources]
    about = f"{part} {content} {config.seed} {asdict(data)}"
    if about not in KNOWN:
        KNOWN[about] = count_records(load_part(config, part))
    return KNOWN[about]


def count_without_download(config: Config, part: str) -> Counts | None:
    """Return the records of a part, of a hub data set as many as rows are published, less the share that is held out; None
    where that is not known, or a row is no record, as in conversation trees."""
    data = config.data
    sources = list_sources(data)
    if not any(source.is_on_hub for source in sources):
        return count_part(config, part)
    counts = [count_source(source, config, part) for source in sources]
    known = [found for found in counts if found is not None]
    if len(known) < len(counts):
        return None
    if data.source != "mixture":
        return known[0]
    names = "demonstrations", "comparisons", "compared_prompts", "prompts", "desirable", "undesirable"
    available = {name: [getattr(found, name) for found in known] for name in names}
    if part == "train":
        available = {name: count_taken(numbers, sources, data.stopping_strategy) for name, numbers in available.items()}
    return Counts(**{name: sum(numbers) for name, numbers in available.items()})


def count_source(source: Source, config: Config, part: str) -> Counts | None:
    """Return the records of a part of one set, of the hub by the published rows; None where they are not known."""
    data, keys = config.data, source.keys
    if not source.has_part(part):
        return Counts(0, 0, 0, 0)
    if not source.is_on_hub:
        alone = data
        if isinstance(keys, Member):
            alone = replace(data, mix={source.name: replace(keys, weight=None, records=None)})
        return count_part(replace(config, data=alone), part)
    fraction, shares = keys.heldout_fraction, keys.split or data.split
    rows: int | None = getattr(keys.hub, "train_rows" if source.is_cut else f"{part}_rows")
    shape = SHAPES.get(keys.converter)
    if rows is None or (shape is not None and shape.gather is not None):
        return None
    if fraction is not None:
        rows = round(rows * (fraction if part == "heldout" else 1.0 - fraction))
    if shares is not None and data.share is not None:
        share = shares[data.share] / sum(shares)
        rows = round(rows * (share if part == "train" or data.format == "deepspeed-chat" else share > 0))
    return Counts(rows, rows, rows, rows, desirable=rows, undesirable=0 if keys.converter == "completion" else rows)


def record_notes(config: Config) -> Iterator[str]:
    """Tell how the data set is read, what is left out of it, and what is doubtful of it."""
    for part in ("train", "heldout"):
        counts, origin = count_part(config, part), name_part(config, part)
        for source in list_sources(config.data):
            if source.has_part(part):
                yield from source_notes(source, part, counts)
        where = f"{origin.key}={origin.value}"
        if counts.sets:
            noun = "training" if part == "train" else "held-out"
            yield f"{where}: {noun} mixture of {count_kinds(counts)}"
        if counts.duplicates:
            yield f"{where}: {plural(counts.duplicates, 'record', ',')} there once more"
    if config.data.split is not None and config.data.share is None:
        yield f"data.split={config.data.split}: each stage trains on its own share of these"
    yield from record_warnings(config)


def record_warnings(config: Config) -> Iterator[str]:
    """Tell what is doubtful of the data set: another number of rows than published, a licence that restricts its use."""
    for source in list_sources(config.data):
        hub = source.keys.hub
        for part in ("train", "heldout"):
            rows, published = count_part(config, part).rows_of(source.name), getattr(hub, f"{part}_rows")
            if source.has_part(part) and not source.is_cut and published not in (None, rows) and config.data.share is None:
                where = f"{source.key(part)}={source.describe(part)}"
                yield f"{where}: published are {published} rows; the data set has changed, or a part of it is missing"
        licence = hub.licence or ""
        if any(word in licence.lower() for word in RESTRICTED):
            yield f"{source.group}.hub.name={hub.name}: the licence restricts commercial use: {licence}"


def source_notes(source: Source, part: str, counts: Counts) -> Iterator[str]:
    """Tell how a part of a set is read, what is left out of it, and how much of it a mixture takes."""
    own = counts.sets.get(source.name, counts)
    held = " (held out)" if source.is_cut and part == "heldout" else ""
    where = f"{source.key(part)}={source.describe(part)}{held}"
    read = f"{where}: {plural(own.rows, 'row', ',')} read as {own.shape}"
    yield f"{read}: {count_kinds(counts)}" if own is counts else read
    for kind, number in own.left_out.items():
        yield f"{where}: {number} {kind} left out"
    if isinstance(own, SetCounts):
        yield from taken_notes(where, own)


def taken_notes(where: str, found: SetCounts) -> Iterator[str]:
    """Tell how many records of a set a mixture takes, and how many of them it repeats."""
    for kind, noun in NOUNS.items():
        available, taken = found.available[kind], found.taken[kind]
        if taken < available:
            yield f"{where}: {taken:,} of {plural(available, noun, ',')} taken"
        elif taken > available:
            yield f"{where}: {taken - available:,} of {plural(available, noun, ',')} repeated"


def count_kinds(counts: Counts) -> str:
    """Return the numbers of demonstrations, pairs and prompts as text."""
    made = [("demonstration", counts.demonstrations), ("pair", counts.comparisons), ("prompt", counts.prompts)]
    if counts.labelled > 2 * counts.comparisons:
        made += [("desirable response", counts.desirable), ("undesirable response", counts.undesirable)]
    return ", ".join(plural(number, noun, ",") for noun, number in made)


def record_problems(config: Config, stage: str) -> Iterator[ConfigError]:
    """Find what the data lacks for a stage, before any record is left out for its length."""
    kind, config = kind_of(stage), select_share(config, stage)
    if kind.records is not None:
        counts = {part: count_part(config, part) for part in ("train", "heldout")}
        numbers = {part: kind.records(config, found).number for part, found in counts.items()}
        if (
            kind.reads is not None
            and kind.reads(config) == "comparisons"
            and numbers["train"] == 0 < counts["train"].labelled
        ):
            where, labels = name_part(config, "train"), plural(counts["train"].labelled, "response", ",")
            fix = "learn from them with stage=sft-dpo dpo.loss=kto dpo.unpaired=true, or give pairs"
            yield ConfigError(where.key, where.value, f"it has {labels} with a label and no pair, which {stage} needs", fix)
        else:
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
    if kind.only_samples:  # which answers all of them, and then those that are held out
        if found == 0:
            where = name_part(config, "train")
            yield ConfigError(where.key, where.value, f"it has no {named.name}{told.get('train', '')}", more)
    elif found < size // copies:
        problem = f"a batch takes {size // copies} {named.name}, and {name_part(config, 'train').value} has {found}"
        fix = f"give at most {found * copies}, or more records" if found else more
        yield ConfigError(f"{kind.section}.{kind.batch_key}", size, problem + told.get("train", ""), fix)
    elif training.max_steps is None:
        steps = count_batches(training.epochs, found * copies // size, None) * kind.updates(config)
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
