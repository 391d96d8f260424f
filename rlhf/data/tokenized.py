"""The data of stages as token ids: made once from records, and read memory-mapped by all ranks of all stages that agree on
the data set, the template, the tokenizer and the lengths."""

import hashlib
import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhf.config.schema import Config
from rlhf.config.sources import reads_hub
from rlhf.data.artifact import artifact_path, identify_data, make_once
from rlhf.data.counted import Counted, Tally
from rlhf.data.dataset import Comparison, Dataset, Labelled, Prompt, Split
from rlhf.data.encoded import Encoded, Tokenizer
from rlhf.data.files import expect_hashes
from rlhf.data.records import ALONE, UNREAD, load_dataset, name_part
from rlhf.data.row_encoder import (
    COLUMNS,
    RecordEncoder,
    Row,
    encode_all,
    hash_bytes,
    prompt_of,
    read_record,
    records_of,
    to_bytes,
    write_record,
)
from rlhf.data.rows import Rows, write_rows
from rlhf.data.templates import build_template
from rlhf.experiment.resolve import read_from
from rlhf.runtime.distributed import is_main
from rlhf.tracking.progress import Bar

T = TypeVar("T")

# So many records take seconds to encode, which a bar shows.
MANY_RECORDS = 10_000
# The files of an artifact: rows, and numbers of its items, [items] or, for the pairs of an item, [items + 1] and [pairs].
ROWS, TOKENS, ANSWERS, BOUNDS, ORDER = "rows.arrow", "tokens.npy", "answers.npy", "bounds.npy", "order.npy"


class DataSource:
    """The data set of a configuration, or, with a `path`, one that a stage has made there, whose records are read when they
    are first asked for."""

    def __init__(self, config: Config, path: str | None = None) -> None:
        self.config, self.path = read_from(config, path), path

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the records and their text."""
        if self.path is None:
            return identify_data(self.config)
        with expect_hashes({}):  # the running stage's are those of the configuration's own files
            return identify_data(self.config)

    @cached_property
    def dataset(self) -> Dataset:
        """The records. Raises ConfigError where files, or a set of the hub, are not what they were when identified."""
        with expect_hashes({key: value for key, value in self.identity.items() if isinstance(value, str)}):
            found = load_dataset(self.config)
        if reads_hub(self.config.data) and identify_data(self.config) != self.identity:
            where = name_part(self.config, "train")
            raise where.error("it changed while it was read", "try again")
        return found


class Tokenized(Sequence[T]):
    """Records of a kind and a part as token ids, memory-mapped.

    Attributes:
        counted: What was counted when they were made.
        sizes: The tokens of each item, [items].
        groups: A number for each row, [rows], the same for rows with the same prompt ids.
        info: What else was noted when they were made.
    """

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path, self.info = path, info
        self.counted = Counted(**info["counted"])
        self.rows = Rows(path / ROWS)
        self.sizes: np.ndarray = np.load(path / TOKENS, mmap_mode="r")
        self.groups = self.rows.numbers("group")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: Any) -> Any:
        """Return an item, or, of a slice, a list of them."""
        if isinstance(number, slice):
            return [self.read(row) for row in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.read(int(number) % len(self))

    @abstractmethod
    def read(self, number: int) -> T:
        """Return the item of a number."""

    def record(self, row: int) -> tuple[Prompt, dict[str, Any]]:
        """Return the prompt of a row as it is before the template, and what else is known of it."""
        return read_record(self.rows.cell("record", row))

    def count_responses(self, *others: "Tokenized[Any]") -> dict[str, float]:
        """Metrics: how many distinct responses there are here and in others, and how many of them were cut at
        data.max_response_tokens."""
        found = np.unique(np.concatenate([np.load(part.path / ANSWERS) for part in (self, *others)]))
        return {"data/responses": float(len(found)), "data/responses_cut": float((found & 1).sum())}


class Demonstrations(Tokenized[Encoded]):
    """Prompts with a response to imitate."""

    def read(self, number: int) -> Encoded:
        """Return a demonstration."""
        return self.answer(number, "response", "cut")

    def answer(self, row: int, ids: str, cut: str) -> Encoded:
        """Return the prompt of a row with a response."""
        said, response = self.rows.cell("said", row), self.rows.ids(ids, row)
        loss = None if said is None else said + [1] * len(response)
        return Encoded(self.rows.ids("prompt", row), response, self.rows.cell(cut, row), loss)


class LabelledResponses(Demonstrations):
    """Prompts with a response and its label."""

    @cached_property
    def desirable(self) -> np.ndarray:
        """Whether each response is desirable, [rows]."""
        return self.rows.numbers("desirable")


class Comparisons(Demonstrations):
    """Elements of comparison: a pair, or all pairs of a prompt, each pair with the preferred response first."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        super().__init__(path, info)
        self.bounds: np.ndarray = np.load(path / BOUNDS, mmap_mode="r")
        self.order: np.ndarray = np.load(path / ORDER, mmap_mode="r")

    def read(self, number: int) -> Any:
        """Return the pairs of an element."""
        return [self.pair(row) for row in self.order[self.bounds[number] : self.bounds[number + 1]].tolist()]

    def pair(self, row: int) -> tuple[Encoded, Encoded]:
        """Return the pair of a row."""
        chosen = replace(self.answer(row, "chosen", "chosen_cut"), margin=float(self.margins[row]))
        return chosen, self.answer(row, "rejected", "rejected_cut")

    @cached_property
    def margins(self) -> np.ndarray:
        """By how much the preferred response of each pair was preferred, [rows]; 0 where its record does not say it."""
        return self.rows.numbers("margin")

    def gaps(self) -> np.ndarray:
        """Return the gold reward of the preferred minus the other response of each pair, [rows]; 0 where none is known."""
        return self.rows.numbers("gap")


class Prompts(Tokenized[list[int]]):
    """Each different prompt once."""

    def read(self, number: int) -> list[int]:
        """Return the ids of a prompt."""
        return self.rows.ids("prompt", number)


VIEWS: dict[str, type[Tokenized[Any]]] = {
    "demonstrations": Demonstrations, "comparisons": Comparisons, "labelled": LabelledResponses, "prompts": Prompts,
}  # fmt: skip


def open_data(
    source: DataSource, tokenizer: Tokenizer, kind: str, part: str, grouped: bool = False, first: int | None = None,
    turns: bool = False,
) -> Any:  # fmt: skip
    """Return the records of a kind of the training (`train`) or the held-out (`heldout`) part, after making them if nobody
    has. All ranks call this; the first one makes them.

    Args:
        source: The data set.
        tokenizer: The tokenizer of the model that reads the records.
        kind: `demonstrations`, `comparisons`, `labelled` or `prompts`.
        part: The part.
        grouped: Whether all pairs of a prompt are one item.
        first: How many records are taken, the first ones; None: all.
        turns: Whether what the assistant says in earlier turns is to be known of every record.

    Raises:
        ConfigError: The records cannot be read.
    """
    config, template = source.config, build_template(source.config.data, tokenizer)
    if turns:
        template.check_turns()
    content = {
        "data": source.identity, "tokenizer": identify_tokenizer(tokenizer), "part": part, "grouped": grouped,
        "first": first, "turns": turns,
    }  # fmt: skip
    path = artifact_path(config, kind, content)

    def make(directory: Path) -> dict[str, Any]:
        return write_part(directory, source, kind, RecordEncoder(template, turns), part, grouped, first)

    return VIEWS[kind](path, make_once(config, path, make))


def write_part(
    directory: Path, source: DataSource, kind: str, encoder: RecordEncoder, part: str, grouped: bool, first: int | None
) -> dict[str, Any]:
    """Encode the records of a kind and a part, and write them; returns what is noted of them."""
    split: Split = getattr(source.dataset, part)
    records = records_of(kind, split)[:first]
    gold = source.dataset.gold if part == "heldout" else None

    def describe(record: Any) -> Row:
        prompt: Any = prompt_of(record)
        row: Row = {"record": write_record(prompt, split.meta.get(prompt, {}))}
        if isinstance(record, Labelled):
            row["desirable"] = record.desirable
        if isinstance(record, Comparison):
            row["margin"] = record.margin
            row["gap"] = gold(prompt, record.chosen) - gold(prompt, record.rejected) if gold else 0.0
        return row

    label = f"{'training' if part == 'train' else 'held-out'} {kind}"
    said = write_data(directory, kind, records, encoder, describe, left_out_of(split, kind), grouped, label)
    return {**said, "agreement": source.dataset.agreement if part == "heldout" else None}


def write_data(
    directory: Path,
    kind: str,
    records: Sequence[Any],
    encode: Callable[[Any], Row | str],
    describe: Callable[[Any], Row] = lambda record: {"record": ""},
    left_out: Mapping[str, int] | None = None,
    grouped: bool = False,
    label: str = "texts",
) -> dict[str, Any]:
    """Encode records and write their rows, each completed by what `describe` says of it; returns what is noted of them."""
    tally, answers, prompts = Tally(), Answers(), list[Any]()
    shown = is_main() and len(records) >= MANY_RECORDS
    with write_rows(directory / ROWS, COLUMNS[kind]) as writer, Bar("tokens", len(records), shown) as bar:
        for number, (record, row) in enumerate(zip(records, encode_all(encode, records), strict=True), start=1):
            bar.update(number, {"encoding": label})
            if isinstance(row, str):
                tally.dropped[row] += 1
                continue
            tally.kept += 1
            tally.prompts.append(len(row["prompt"]))
            tally.ties += answers.add(row, tally)
            if kind == "comparisons":
                prompts.append(prompt_of(record))
            writer.write(row | describe(record))
    items = Items(prompts, grouped) if kind == "comparisons" else None
    np.save(directory / TOKENS, answers.count_tokens(items, tally))
    np.save(directory / ANSWERS, answers.distinct())
    if items is not None:
        np.save(directory / BOUNDS, items.bounds)
        np.save(directory / ORDER, items.order)
    counted = tally.finish(left_out or {}, tally.kept if items is None else len(items.bounds) - 1)
    return {"counted": asdict(counted)}


class Answers:
    """Counts responses by their hashes: the last bit of a hash says whether the response was cut."""

    def __init__(self) -> None:
        self.hashes, self.lengths = array("Q"), array("l")

    def add(self, row: Row, tally: Tally) -> bool:
        """Note the responses of a row; returns whether they are two with the same tokens."""
        prompt, pair = to_bytes(row["prompt"]), "chosen" in row
        names = (("chosen", "chosen_cut"), ("rejected", "rejected_cut")) if pair else (("response", "cut"),)
        for ids, cut in names if "response" in row or pair else ():
            self.hashes.append(hash_bytes(prompt, to_bytes(row[ids])) & ~1 | row[cut])
            self.lengths.append(len(row["prompt"]) + len(row[ids]))
            tally.responses.append(len(row[ids]))
            tally.cut += row[cut]
        return bool(pair and row["chosen"] == row["rejected"])

    def distinct(self) -> np.ndarray:
        """Return the hashes of the distinct responses."""
        return np.unique(np.array(self.hashes, dtype=np.uint64))

    def count_tokens(self, items: "Items | None", tally: Tally) -> np.ndarray:
        """Return the tokens of each item: of a comparison the different responses, each with its prompt, [items]."""
        if items is None:
            return np.array(self.lengths or tally.prompts, dtype=np.int64)
        hashes, lengths = (np.array(found).reshape(-1, 2)[items.order] for found in (self.hashes, self.lengths))
        sizes = [
            sum(dict(zip(hashes[start:end].flat, lengths[start:end].flat, strict=True)).values())
            for start, end in pairwise(items.bounds.tolist())
        ]
        return np.array(sizes, dtype=np.int64)


class Items:
    """Which pairs are one item: `order` are the numbers of pairs, item by item, and `bounds` where each item begins."""

    def __init__(self, prompts: list[Prompt], grouped: bool) -> None:
        known: dict[Prompt, int] = {}
        numbers = [known.setdefault(prompt, len(known)) for prompt in prompts] if grouped else range(len(prompts))
        self.order = np.argsort(np.array(numbers, dtype=np.int64), kind="stable")
        counts = np.bincount(np.array(numbers, dtype=np.int64))
        self.bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def left_out_of(split: Split, kind: str) -> dict[str, int]:
    """Return how many rows and records of a part hold nothing of a kind, by the reason."""
    unread = split.unread.get(kind, 0)
    found = {reason: number for reason, number in split.left_out.items() if reason != ALONE}
    return {**found, **({UNREAD[kind]: unread} if unread else {})}


def identify_tokenizer(tokenizer: Tokenizer) -> str:
    """Return a hash of all that decides the ids of a text, with the chat template: it is the same for a tokenizer that was
    saved and loaded."""
    return hash_tokenizer(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def hash_tokenizer(tokenizer: Tokenizer, template: str) -> str:
    """Return a hash of a tokenizer with this chat template."""
    special = [tokenizer.eos_token_id, tokenizer.bos_token_id, template]
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        content = [{name: value for name, value in backend.items() if name not in ("truncation", "padding")}, special]
    else:
        content = [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs, special]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
