"""Where data sets come from, and how their rows become the records of the stages."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.inputs import show_paths
from rlhf.config.schema import Columns, Config, Data
from rlhf.data.cells import CellError, Dropped
from rlhf.data.dataset import Comparison, Dataset, Demonstration, Prompt, Record, Split
from rlhf.data.deepspeed_chat import cut
from rlhf.data.files import Origin, Row, read_files
from rlhf.data.hub import load_split
from rlhf.data.shapes import Shape, find_shape
from rlhf.data.templates.plain import check_prompt

# Why a record holds nothing of a kind of data.
UNREAD = {"demonstrations": "without a response", "comparisons": "without a pair", "prompts": "duplicate"}
# What is left out of records that are kept.
ALONE, UNDESIRABLE = "rejected answers without a chosen one", "undesirable responses, which no stage reads,"
PARTLY = (ALONE, UNDESIRABLE)


def load_dataset(config: Config) -> Dataset:
    """Return the data set that the configuration names. Raises ConfigError for what is missing."""
    if config.data.source == "demo":
        from rlhf.data.demo import demo_dataset

        return demo_dataset(config.data.demo, config.seed)
    return Dataset(load_part(config, "train"), load_part(config, "heldout"))


def load_part(config: Config, part: str) -> Split:
    """Return the records of the training or the held-out part of files or of a hub data set."""
    data = config.data
    shared = data.heldout_fraction is not None
    source = "train" if shared else part
    rows = file_rows(data, source) if data.source == "files" else hub_rows(data, source)
    if not rows:
        raise name_origin(data, source).error("it cannot be read (it is empty)")
    if data.heldout_fraction is not None:
        fraction = data.heldout_fraction
        train, heldout = cut(len(rows), (1.0 - fraction, fraction), config.seed)
        rows = [rows[place] for place in (train if part == "train" else heldout)]
    return build_split(rows, data, name_origin(data, part))


def name_origin(data: Data, part: str) -> Origin:
    """Return the key and the value that say where a part comes from."""
    if data.source == "files":
        own = named_part(data, part)
        return Origin(f"data.files.{own}", show_paths(getattr(data.files, own)))
    split = data.hub.train_split if data.heldout_fraction is not None else getattr(data.hub, f"{part}_split")
    return Origin("data.hub.name", f"{data.hub.name} ({split})")


def named_part(data: Data, part: str) -> str:
    """Return the part whose files hold the records of a part: the training files, where no others are named."""
    return part if getattr(data.files, part) is not None else "train"


def file_rows(data: Data, part: str) -> list[tuple[Origin, Row]]:
    """Read the rows of a part's files, each with the file it is of."""
    return list(read_files(name_origin(data, part), getattr(data.files, named_part(data, part))))


def hub_rows(data: Data, part: str) -> list[tuple[Origin, Row]]:
    """Load the rows of a part of a hub data set."""
    hub, origin = data.hub, name_origin(data, part)
    rows = load_split(str(hub.name), hub.config, getattr(hub, f"{part}_split"), hub.revision, "data.hub.name", hub.data_dir)
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


def build_split(rows: list[tuple[Origin, Row]], data: Data, origin: Origin) -> Split:
    """Make the records of a part from its rows, in the shape that `data.converter` names or that their columns show.
    Each row that holds no record is counted with the reason. Raises ConfigError where no shape fits, or no row holds a
    record."""
    renamed = rename_columns(rows, data.columns)
    columns = find_columns(row for _, row in renamed)
    name, shape = find_shape(data, columns, origin.value)
    left_out = Counter[str]()
    records = list(convert_rows(renamed, name, shape, left_out))
    split = sort_records(records, data, left_out)
    if not split.prompts:
        found = ", ".join(columns)
        if name == "pairs" and set(left_out) <= {"rows without a prompt"}:
            raise ConfigError("data.columns.prompt", data.columns.prompt, f"no row has it (found: {found})",
                              "name the column that holds the prompt, or set data.converter")  # fmt: skip
        dropped = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        fix = "set data.converter, or check the rows"
        raise origin.error(f"no row holds a record, read as {name} (found: {found}; {dropped})", fix)
    return Split(
        split.demonstrations, split.comparisons, split.prompts, dict(left_out), split.meta,
        describe_shape(name, shape, columns), len(rows), split.unread,
    )  # fmt: skip


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


def convert_rows(rows: list[tuple[Origin, Row]], name: str, shape: Shape, left_out: Counter[str]) -> Iterator[Record]:
    """Yield the records of rows; a row that holds none is counted in `left_out`. Raises ConfigError, with file, row and
    column, for a cell of a wrong type."""
    origins = {number: origin for origin, (number, _) in rows} if shape.gather else {}
    gathered = shape.gather(row for _, row in rows) if shape.gather else None
    numbered = rows if gathered is None else ((origins[row[0]], row) for row in gathered)
    for origin, (number, cells) in numbered:
        try:
            yield from shape.convert(cells)
        except Dropped as reason:
            left_out[str(reason)] += 1
        except CellError as error:
            raise origin.error(f"row {number}, column {error.column}: {error.problem}", error.fix) from error
        except Exception as error:
            if ":" not in name:
                raise
            problem = f"it fails on row {number} of {origin.value} ({type(error).__name__}: {error})"
            raise ConfigError("data.converter", name, problem, "correct the function") from error


def sort_records(records: list[Record], data: Data, left_out: Counter[str]) -> Split:
    """Sort what records hold into what the stages read: responses to imitate, pairs, and each different prompt once.
    What no stage reads is counted in `left_out`."""
    demonstrations: list[Demonstration] = []
    comparisons: list[Comparison] = []
    meta: dict[Prompt, Mapping[str, Any]] = {}
    unread = Counter[str]()
    for record in records:
        try:
            check_prompt(record.prompt, data)
        except Dropped as reason:
            left_out[str(reason)] += 1
            continue
        prompt = simplify_prompt(record.prompt)
        responses, pairs = responses_to_imitate(record), list(pairs_of(record))
        unread.update(demonstrations=not responses, comparisons=not pairs, prompts=prompt in meta)
        meta.setdefault(prompt, record.meta)
        demonstrations += [Demonstration(prompt, response) for response in responses]
        comparisons += [Comparison(prompt, *pair) for pair in pairs]
        if record.rejected is not None and record.chosen is None:
            left_out[ALONE] += 1
        if undesirable := sum(not label for _, label in record.labelled):
            left_out[UNDESIRABLE] += undesirable
    known = {prompt: known for prompt, known in meta.items() if known}
    return Split(demonstrations, comparisons, list(meta), meta=known, unread=dict(unread))


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
