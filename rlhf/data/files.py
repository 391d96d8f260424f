"""Rows of files, as they are written: JSON Lines, JSON, CSV, Parquet and plain text.

No type is guessed, and a path is the file of that name, whatever characters it holds.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast

from rlhf.config.errors import ConfigError, first_line

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
# What is read as lines may be compressed too, if its name says so.
ZIPPED = ".gz"
# How files begin that are compressed, and what they are then called.
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
# Bytes of the longest record that is read: a larger one is a mistake, or an archive that unpacks without end.
LONGEST = 64 * 2**20
TYPES = {
    bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes",
    date: "a date or time", time: "a date or time",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where rows come from: the key of the configuration and its value, as messages name them."""

    key: str
    value: str

    def error(self, problem: str, fix: str = "check the file") -> ConfigError:
        """An error about this origin."""
        return ConfigError(self.key, self.value, problem, fix)


# The number of a row, from 1, with its cells by column.
Row = tuple[int, Mapping[str, Any]]


def read_rows(origin: Origin, formats: Iterable[str] = FORMATS) -> Iterator[Row]:
    """Read the rows of a file. Raises ConfigError for what cannot be read, with the number of the row."""
    path = Path(origin.value).expanduser()
    suffix, zipped = suffix_of(path)
    if suffix not in formats or (zipped and suffix == ".parquet"):
        raise origin.error("unknown file type", f"give one of {', '.join(formats)}")
    try:
        check_magic(origin, path, zipped)
        if suffix == ".parquet":
            yield from parquet_rows(path)
            return
        with cast(IO[bytes], gzip.open(path) if zipped else path.open("rb")) as stream:
            if suffix == ".csv":
                yield from csv_rows(origin, stream)
            elif suffix == ".txt":
                yield from ((number, {"text": text}) for number, text in text_lines(origin, stream))
            else:
                yield from json_rows(origin, stream)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise origin.error(f"it cannot be read ({first_line(error)})") from error


def suffix_of(path: Path) -> tuple[str, bool]:
    """The type that a file's name states, in small letters, and whether it says that the file is compressed."""
    name = path.name.lower()
    return Path(name.removesuffix(ZIPPED)).suffix, name.endswith(ZIPPED)


def check_magic(origin: Origin, path: Path, zipped: bool) -> None:
    """A file is compressed if and only if its name says so."""
    with path.open("rb") as stream:
        head = stream.read(8)
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if zipped and found != "gzip":
        raise origin.error("it is not compressed with gzip, as its name says", "rename it")
    if found is not None and not zipped:
        fix = f"rename it to {path.name}{ZIPPED}" if found == "gzip" else "unpack it"
        raise origin.error(f"it is compressed ({found}), and its name does not say so", fix)


def text_lines(origin: Origin, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without their ends; a line ends with a line feed and nothing else."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise origin.error(f"row {number} is longer than {LONGEST // 2**20} MiB")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            problem = f"it cannot be read (row {number}: it is not UTF-8, {error.reason} 0x{line[error.start]:02x})"
            raise origin.error(problem, "save it as UTF-8") from error
        yield number, text.removesuffix("\n").removesuffix("\r")


def json_rows(origin: Origin, stream: IO[bytes]) -> Iterator[Row]:
    """Objects, one a line, or one list of them; blank lines are passed over."""
    for number, line in text_lines(origin, stream):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            rest = "\n".join(text for _, text in text_lines(origin, stream))
            values = enumerate(parse_json(origin, f"{line}\n{rest}", None), 1)
            yield from ((place, as_object(origin, value, place)) for place, value in values)
            return
        yield number, as_object(origin, parse_json(origin, line, number), number)


def parse_json(origin: Origin, text: str, row: int | None) -> Any:
    """A JSON value, in which no key stands twice and every number is one."""
    where = "" if row is None else f"row {row}: "
    try:
        return json.loads(text, object_pairs_hook=refuse_duplicate_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise origin.error(f"it cannot be read ({where}it is no JSON, {first_line(error)})") from error


def refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice: {', '.join(name for name, _ in pairs)}")
    return found


def refuse_constant(name: str) -> None:
    """JSON has no NaN and no infinity."""
    raise ValueError(f"{name} is no JSON number")


def as_object(origin: Origin, value: Any, row: int) -> Mapping[str, Any]:
    """A row that is an object."""
    if not isinstance(value, dict):
        raise origin.error(f"row {row}: it is {type_of(value)}, not an object", "write an object a row: {...}")
    return value


def csv_rows(origin: Origin, stream: IO[bytes]) -> Iterator[Row]:
    """Rows under a header; every cell is text as it is typed, an empty one is missing."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    header: list[str] = []
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise origin.error("two columns have one name", "give each its own")
                continue
            number += 1
            if len(cells) != len(header):
                raise origin.error(f"row {number} has {len(cells)} cells, its header {len(header)}")
            yield number, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise origin.error(f"it cannot be read (row {number + 1}: it is no CSV, {first_line(error)})") from error


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, with the types that it states."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for cells in batch.to_pylist():
                number += 1
                yield number, cells
    except ArrowException as error:
        raise ValueError(first_line(error)) from error


def type_of(value: Any) -> str:
    """What a value that is no text is called."""
    return next((name for kind, name in TYPES.items() if isinstance(value, kind)), type(value).__name__)


def text_of(origin: Origin, row: Row, column: str) -> str | None:
    """The text in a column of a row; None where there is none, or an empty one. Raises ConfigError for what is no text."""
    number, cells = row
    value = cells.get(column)
    if value is None:
        return None
    where = f"row {number}, column {column}: "
    if not isinstance(value, str):
        fix = "write it as text" + (", in quotes" if isinstance(value, int | float) else "")
        if isinstance(value, list | dict):
            fix += ": conversations are not read as such"
        raise origin.error(f"{where}it is {type_of(value)}, not text", fix)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise origin.error(f"{where}it holds half a character (a lone surrogate)", "write the whole character")
    return value or None
