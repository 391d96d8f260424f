"""Where data sets come from, and how their rows become the records of the stages."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Columns, Config, Data
from rlhf.config.sources import Source, list_sources
from rlhf.data.cells import CellError, Dropped
from rlhf.data.dataset import Comparison, Dataset, Demonstration, Labelled, Prompt, Record, Responses, Split
from rlhf.data.deepspeed_chat import cut
from rlhf.data.files import Origin, Row, read_files
from rlhf.data.hub import load_split
from rlhf.data.mixtures import Part, group_records, mix
from rlhf.data.shapes import Shape, find_shape
from rlhf.data.templates.plain import check_prompt

# Why a record holds nothing of a kind of data.
UNREAD = {
    "demonstrations": "without a response",
    "comparisons": "without a pair",
    "labelled": "without a label",
    "prompts": "duplicate",
}
# What is left out of records that are kept.
ALONE = "rejected answers without a chosen one"


def load_dataset(config: Config) -> Dataset:
    """Return the data set that the configuration names: of a split one the share `data.share`. Raises ConfigError for what
    is missing."""
    if config.data.source == "demo":
        from rlhf.data.demo import demo_dataset

        return demo_dataset(config.data.demo, config.seed)
    return Dataset(load_part(config, "train"), load_part(config, "heldout"))


def load_part(config: Config, part: str) -> Split:
    """Return the records of the training or the held-out part of files, of a hub data set, or of a mixture of them."""
    data = config.data
    parts = [load_source(source, config, part) for source in list_sources(data)]
    if data.source == "mixture":
        return mix(parts, [sort_each(part, data) for part in parts], data, config.seed, part == "train")
    return build_split(parts[0], data)


def build_split(part: Part, data: Data) -> Split:
    """Sort the records of a set that is no part of a mixture into what the stages read. Raises ConfigError where none has
    a text."""
    split = sort_records(part.records, data, part.left_out)
    require_prompts(part, bool(split.prompts) or not part.records)
    return replace(split, left_out=dict(part.left_out), shape=part.shape, rows=part.rows)


def sort_each(part: Part, data: Data) -> list[Split]:
    """Sort each record of a set of a mixture by itself into what the stages read; the meta of its prompt says the `set`."""
    named = [replace(record, meta={**record.meta, "set": part.source.name}) for record in part.records]
    entries = [sort_records([record], data, part.left_out) for record in named]
    require_prompts(part, any(entry.prompts for entry in entries) or not entries)
    return [entry for entry in entries if entry.prompts]


def load_source(source: Source, config: Config, part: str) -> Part:
    """Read a part of a set. Raises ConfigError, which names the keys of the set, for what cannot be read."""
    if not source.has_part(part):
        return Part(source, part)
    rows = hub_rows(source, part) if source.is_on_hub else list(read_files(name_origin(source, part), source.paths(part)))
    if not rows:
        raise name_origin(source, part).error("it cannot be read (it is empty)")
    whole, found = build_part(source, part, rows)
    chosen = select_rows(found, source, config, part)
    return whole if len(chosen) == len(found) else collect(replace(whole, rows=len(chosen)), chosen)


def build_part(source: Source, part: str, rows: list[tuple[Origin, Row]]) -> tuple[Part, "list[Converted]"]:
    """Read rows in the shape that `converter` names or that their columns show; returns what all of them hold, and what
    each does. Each row that holds no record is counted with the reason. Raises ConfigError where no shape fits or no row
    holds a record."""
    rows = rename_columns(rows, source.keys.columns)
    columns = find_columns(row for _, row in rows)
    try:
        name, shape = find_shape(source.keys, columns, source.describe(part))
        found = list(convert_rows(rows, name, shape))
    except ConfigError as error:
        raise name_keys(error, source) from error
    described, count = describe_shape(name, shape, columns), len(rows)
    whole = collect(Part(source, part, columns=tuple(columns), shape=described, rows=count), found)
    require_prompts(whole, bool(whole.records))
    return whole, found


@dataclass(frozen=True)
class Converted:
    """What a row is read as: its records, and why it holds none, or no more."""

    records: list[Record]
    reason: str | None = None


def collect(part: Part, rows: Iterable[Converted]) -> Part:
    """Return a part with the records of rows, and the counted reasons of those without."""
    rows = list(rows)
    reasons = Counter(row.reason for row in rows if row.reason is not None)
    return replace(part, records=[record for row in rows for record in row.records], left_out=reasons)


def select_rows(rows: list[Converted], source: Source, config: Config, part: str) -> list[Converted]:
    """Return the rows of a part: of training rows of which a share is held out, and of a split set, those of the stage.
    A held-out part is split only with data.format=deepspeed-chat; of a set from which a stage has nothing it has no
    held-out records either."""
    data, fraction = config.data, source.keys.heldout_fraction
    if fraction is not None:
        rows = cut_rows(rows, (1.0 - fraction, fraction), config)[0 if part == "train" else 1]
    shares = data.split if source.keys.split is None else source.keys.split
    if shares is None or data.share is None:
        return rows
    if part == "train" or data.format == "deepspeed-chat":
        return cut_rows(rows, shares, config)[data.share]
    return rows if shares[data.share] else []


def cut_rows(rows: list[Converted], shares: Sequence[float], config: Config) -> list[list[Converted]]:
    """Cut rows into shares, drawn with the seed: row by row with data.format=deepspeed-chat, as there, else such that
    conversations that begin alike are in one share."""
    units = group_records([row.records for row in rows])
    if config.data.format == "deepspeed-chat":
        units = [[number] for number in range(len(rows))]
    return [[rows[number] for unit in share for number in units[unit]] for share in cut(len(units), shares, config.seed)]


def require_prompts(part: Part, has_some: bool) -> None:
    """Raise ConfigError where no row of a set holds a record."""
    if has_some:
        return
    found, columns, source = ", ".join(part.columns), part.source.keys.columns, part.source
    if part.shape.startswith("pairs ") and set(part.left_out) <= {"rows without a prompt"}:
        problem, fix = (
            f"no row has it (found: {found})",
            f"name the column that holds the prompt, or set {source.group}.converter",
        )
        raise ConfigError(f"{source.group}.columns.prompt", columns.prompt, problem, fix)
    dropped = ", ".join(f"{number} {reason}" for reason, number in part.left_out.items())
    name = part.shape.partition(" (")[0]
    fix = f"set {source.group}.converter, or check the rows"
    raise name_origin(source, part.part).error(f"no row holds a record, read as {name} (found: {found}; {dropped})", fix)


def name_keys(error: ConfigError, source: Source) -> ConfigError:
    """Return an error about keys of `data` as one about those of a set of a mixture."""
    own = re.compile(r"\bdata\.(?=(?:converter|columns|files|hub)\b)")
    key, problem, fix = (own.sub(f"{source.group}.", text) for text in (error.key, error.problem, error.fix))
    return ConfigError(key, error.value, problem, fix)


def name_origin(source: Source, part: str) -> Origin:
    """Return the key and the value that say where a part comes from."""
    return Origin(source.key(part), source.describe(part))


def name_part(config: Config, part: str) -> Origin:
    """Return the key and the value that name the training or the held-out part."""
    data = config.data
    if data.source in ("demo", "mixture"):
        return Origin("data.source", "demo") if data.source == "demo" else Origin("data.mix", ",".join(data.mix or {}))
    return name_origin(list_sources(data)[0], part)


def hub_rows(source: Source, part: str) -> list[tuple[Origin, Row]]:
    """Load the rows of a part of a hub data set."""
    hub, origin = source.keys.hub, name_origin(source, part)
    rows = load_split(str(hub.name), hub.config, source.split(part), hub.revision, origin.key, hub.data_dir)
    return [(origin, row) for row in enumerate(rows, 1)]


def find_gold(config: Config) -> Callable[[Prompt, str], float] | None:
    """Return what judges (prompt, response) truly, where that is known."""
    if config.data.source == "demo":
        from rlhf.data.demo import gold_reward

        return gold_reward
    return None


def require_records(items: Sequence[Any], kind: str, config: Config) -> None:
    """Check that there are held-out items, before a model is built. Raises ConfigError."""
    if not items:
        fix = "check the columns (data.columns) and data.max_prompt_tokens"
        raise ConfigError("data.source", config.data.source, f"it has no held-out {kind} that fit", fix)


def describe_shape(name: str, shape: Shape, columns: Mapping[str, Any]) -> str:
    """Return a shape's name with the columns of the data set that it is recognised by, or all there are."""
    known = {column for wanted in shape.sets for column in wanted} or set(columns)
    return f"{name} ({', '.join(column for column in columns if column in known)})"


def rename_columns(rows: list[tuple[Origin, Row]], columns: Columns) -> list[tuple[Origin, Row]]:
    """Give the columns that `data.columns` names the names that converters know them by."""
    other = {ours: theirs for ours, theirs in asdict(columns).items() if ours != theirs}
    if not other:
        return rows
    return [
        (origin, (number, {**cells, **{ours: cells[theirs] for ours, theirs in other.items() if theirs in cells}}))
        for origin, (number, cells) in rows
    ]


def find_columns(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the columns that rows have, in the order in which they are met, each with the first value that is no null."""
    found: dict[str, Any] = {}
    for _, cells in rows:
        for column, value in cells.items():
            if found.get(column) is None:
                found[column] = value
    return found


def convert_rows(rows: list[tuple[Origin, Row]], name: str, shape: Shape) -> Iterator[Converted]:
    """Yield what each row is read as, or each row that the shape gathers from several. Raises ConfigError, with file, row
    and column, for a cell of a wrong type."""
    origins = {number: origin for origin, (number, _) in rows} if shape.gather else {}
    gathered = shape.gather(row for _, row in rows) if shape.gather else None
    numbered = rows if gathered is None else ((origins[row[0]], row) for row in gathered)
    for origin, (number, cells) in numbered:
        records: list[Record] = []
        try:
            records.extend(shape.convert(cells))
            yield Converted(records)
        except Dropped as reason:
            yield Converted(records, str(reason))
        except CellError as error:
            raise origin.error(f"row {number}, column {error.column}: {error.problem}", error.fix) from error
        except Exception as error:
            if ":" not in name:
                raise
            problem = f"it fails on row {number} of {origin.value} ({type(error).__name__}: {error})"
            raise ConfigError("data.converter", name, problem, "correct the function") from error


def sort_records(records: list[Record], data: Data, left_out: Counter[str]) -> Split:
    """Sort what records hold into what the stages read: responses to imitate, pairs, labels, and each different
    prompt once. What no stage reads is counted in `left_out`."""
    demonstrations: list[Demonstration] = []
    comparisons: list[Comparison] = []
    alone: list[Labelled] = []
    meta: dict[Prompt, Mapping[str, Any]] = {}
    unread = Counter[str]()
    for record in records:
        try:
            check_prompt(record.prompt, data)
        except Dropped as reason:
            left_out[str(reason)] += 1
            continue
        prompt = simplify_prompt(record.prompt)
        responses = responses_to_imitate(record)
        pairs = [Comparison(prompt, *pair, meta=record.meta) for pair in pairs_of(record)]
        labels = [Labelled(prompt, *label) for label in record.labelled]
        is_labelled = bool(labels or pairs)
        unread.update(demonstrations=not responses, comparisons=not pairs, labelled=not is_labelled, prompts=prompt in meta)
        meta.setdefault(prompt, record.meta)
        demonstrations += [Demonstration(prompt, response) for response in responses]
        comparisons += pairs
        alone += labels
        if record.rejected is not None and record.chosen is None:
            left_out[ALONE] += 1
    known = {prompt: known for prompt, known in meta.items() if known}
    labelled = Responses(comparisons, alone)
    return Split(demonstrations, comparisons, list(meta), labelled, meta=known, unread=dict(unread))


def simplify_prompt(prompt: Prompt) -> Prompt:
    """Return the text of a conversation that is one question, or the prompt as it is."""
    alone = not isinstance(prompt, str) and [message.role for message in prompt] == ["user"]
    return prompt[0].content if alone and not isinstance(prompt, str) else prompt


def responses_to_imitate(record: Record) -> list[str]:
    """Return the responses of a record that supervised fine-tuning imitates."""
    if record.response is not None:
        return [record.response]
    if record.chosen is not None:
        return [record.chosen]
    if record.ranked:
        return [max(record.ranked, key=lambda ranked: ranked[1])[0]]
    return [response for response, label in record.labelled if label]


def pairs_of(record: Record) -> Iterator[tuple[str, str, float]]:
    """Yield the pairs of a record, the preferred response first, with the margin: its own, and all that its ranking
    makes."""
    if record.chosen is not None and record.rejected is not None:
        yield record.chosen, record.rejected, margin_of(record)
    for (first, score), (second, other) in combinations(record.ranked, 2):
        if score != other:
            yield (first, second, score - other) if score > other else (second, first, other - score)


def margin_of(record: Record) -> float:
    """Return by how much the chosen response of a record was preferred, from its columns: scores of both, a margin, or a
    grade (HelpSteer's); 0 where none says it."""
    known = record.meta
    for better, worse in (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")):
        if better in known and worse in known:
            return read_number(known[better]) - read_number(known[worse])
    graded = next((name for name in ("margin", "preference_strength", "overall_preference") if name in known), "")
    return abs(read_number(known.get(graded)))


def read_number(cell: Any) -> float:
    """Return a cell as a number; 0 for one that is none."""
    return float(cell) if isinstance(cell, int | float) and math.isfinite(cell) else 0.0
