"""Rows of files, as they are written: JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text.

No type is guessed, and a path is the file of that name, whatever characters it holds. A file is hashed while it is read: a
stage stops where that is not the content that its fingerprint says.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedReader, RawIOBase, TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast

from rlhf.config.errors import ConfigError, first_line, raise_problems
from rlhf.config.sources import check_files, matching_files
from rlhf.data.cells import CellError, name_type, read_text
from rlhf.experiment.fingerprint import changed_file, hash_files

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# Those that hold a table with types of its own, and are compressed inside.
TABLES = (".parquet", ".arrow")
# What is read as lines may be compressed too, if its name says so.
ZIPPED = {".gz": "gzip", ".zst": "zstd"}
# How files begin that are compressed, and what they are then called.
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
# Bytes of the longest record that is read: a larger one is a mistake, or an archive that unpacks without end.
LONGEST = 64 * 2**20
# The hashes that the fingerprint of the running stage has of the files it reads, by their keys.
PLANNED: ContextVar[Mapping[str, str] | None] = ContextVar("PLANNED", default=None)


@dataclass(frozen=True)
class Origin:
    """Where rows come from: the key of the configuration and its value, as messages name them."""

    key: str
    value: str

    def error(self, problem: str, fix: str = "check the file") -> ConfigError:
        """Return an error about this origin."""
        return ConfigError(self.key, self.value, problem, fix)


# The number of a row, from 1, with its cells by column.
Row = tuple[int, Mapping[str, Any]]


@contextmanager
def expect_hashes(planned: Mapping[str, str]) -> Iterator[None]:
    """Within this context a file whose content is not what was planned raises ConfigError once it is read."""
    token = PLANNED.set(planned)
    try:
        yield
    finally:
        PLANNED.reset(token)


class HashingReader(RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, path: Path) -> None:
        self.name, self.size, self.digest = path.name, 0, hashlib.sha256()
        self.stream = path.open("rb", buffering=0)

    def readable(self) -> bool:
        """Return whether a file can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into a buffer, and hash them."""
        count = self.stream.readinto(buffer)
        self.size += count
        self.digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
        super().close()


def read_files(origin: Origin, paths: str | list[str], formats: Iterable[str] = FORMATS) -> Iterator[tuple[Origin, Row]]:
    """Read the rows of the files that paths name (see `matching_files`), each with the file it is of. Raises ConfigError
    for what cannot be read, and, after the last row, where the files are not those of the fingerprint."""
    raise_problems(check_files(origin.key, paths))
    files = matching_files(paths)
    read: list[tuple[str, int, bytes]] = []
    for file in files:
        part = Origin(origin.key, str(file) if len(files) > 1 else origin.value)
        yield from ((part, row) for row in read_rows(part, file, read, formats))
    planned = (PLANNED.get() or {}).get(origin.key)
    if planned is not None and planned != (found := hash_files(read)):
        raise changed_file(origin.key, origin.value, planned, found)


def read_rows(
    origin: Origin, path: Path, read: list[tuple[str, int, bytes]], formats: Iterable[str] = FORMATS
) -> Iterator[Row]:
    """Read the rows of a file; once it is read, its name, size and hash are added to `read`. Raises ConfigError for what
    cannot be read, with the number of the row."""
    suffix, zipped = suffix_of(path)
    if suffix not in formats or (zipped and suffix in TABLES):
        raise origin.error("unknown file type", f"give one of {', '.join(formats)}")
    try:
        with HashingReader(path) as raw, BufferedReader(raw, 2**20) as stream:
            check_magic(origin, path, stream.peek(8)[:8], zipped)
            unpacked = unpack(cast(IO[bytes], stream), zipped)  # which closes the file once nobody names it
            yield from rows_of(origin, suffix, unpacked)
            while stream.read(2**20):  # what the format leaves unread is hashed too
                pass
            read.append((raw.name, raw.size, raw.digest.digest()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise origin.error(f"it cannot be read ({first_line(error)})") from error


def rows_of(origin: Origin, suffix: str, stream: IO[bytes]) -> Iterator[Row]:
    """Read the rows of an open file of the type that its name states."""
    if suffix in TABLES:
        return table_rows(stream.read(), suffix)
    if suffix in (".csv", ".tsv"):
        return csv_rows(origin, stream, "," if suffix == ".csv" else "\t")
    if suffix == ".txt":
        return ((number, {"text": text}) for number, text in text_lines(origin, stream))
    return json_rows(origin, stream, is_one_value=suffix == ".json")


def unpack(stream: IO[bytes], zipped: str) -> IO[bytes]:
    """Return the stream of what a compressed file holds; the file itself where it is not compressed."""
    if zipped == ".gz":
        return cast(IO[bytes], gzip.open(stream))
    if zipped == ".zst":
        import pyarrow

        return BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd"))
    return stream


def suffix_of(path: Path) -> tuple[str, str]:
    """Return the type that a file's name states, in small letters, and how the file is compressed: `.gz`, `.zst` or not,
    ""."""
    name = path.name.lower()
    zipped = next((ending for ending in ZIPPED if name.endswith(ending)), "")
    return Path(name.removesuffix(zipped)).suffix, zipped


def check_magic(origin: Origin, path: Path, head: bytes, zipped: str) -> None:
    """Check that a file is compressed if and only if its name says so."""
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if zipped and found != ZIPPED[zipped]:
        raise origin.error(f"it is not compressed with {ZIPPED[zipped]}, as its name says", "rename it")
    if found is not None and not zipped:
        ending = next((ending for ending, name in ZIPPED.items() if name == found), None)
        fix = f"rename it to {path.name}{ending}" if ending else "unpack it"
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


def json_rows(origin: Origin, stream: IO[bytes], is_one_value: bool) -> Iterator[Row]:
    """Objects, one a line, or one list of them, or, where the name says that the file `is_one_value`, one object over
    several lines; blank lines are passed over."""
    for number, line in text_lines(origin, stream):
        if not line.strip():
            continue
        is_open = line.lstrip().startswith("[") or (is_one_value and not is_json(line))
        if number == 1 and is_open:
            rest = "\n".join(text for _, text in text_lines(origin, stream))
            value = parse_json(origin, f"{line}\n{rest}", None)
            values = enumerate(value if isinstance(value, list) else [value], 1)
            yield from ((place, as_object(origin, item, place)) for place, item in values)
            return
        yield number, as_object(origin, parse_json(origin, line, number), number)


def is_json(text: str) -> bool:
    """Tell whether a text is a whole JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(origin: Origin, text: str, row: int | None) -> Any:
    """Return a JSON value, in which no key stands twice and every number is one."""
    where = "" if row is None else f"row {row}: "
    try:
        return json.loads(text, object_pairs_hook=refuse_duplicate_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise origin.error(f"it cannot be read ({where}it is no JSON, {first_line(error)})") from error


def refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice: {', '.join(name for name, _ in pairs)}")
    return found


def refuse_constant(name: str) -> None:
    """JSON has no NaN and no infinity."""
    raise ValueError(f"{name} is no JSON number")


def as_object(origin: Origin, value: Any, row: int) -> Mapping[str, Any]:
    """Return a row that is an object."""
    if not isinstance(value, dict):
        raise origin.error(f"row {row}: it is {name_type(value)}, not an object", "write an object a row: {...}")
    return value


def csv_rows(origin: Origin, stream: IO[bytes], delimiter: str) -> Iterator[Row]:
    """Rows under a header; every cell is text as it is typed, an empty one is missing."""
    csv.field_size_limit(LONGEST)
    text = TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True, delimiter=delimiter)
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
    finally:
        text.detach()  # the file stays open for whoever opened it


def table_rows(content: bytes, suffix: str) -> Iterator[Row]:
    """Rows of a Parquet or Arrow file, with the types that it states. It is read from the bytes that were hashed."""
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in table_batches(content, suffix):
            for cells in batch.to_pylist():
                number += 1
                yield number, cells
    except ArrowException as error:
        raise ValueError(first_line(error)) from error


def table_batches(content: bytes, suffix: str) -> Iterator[Any]:
    """Return the record batches of a Parquet file or of an Arrow file, which is a stream, as `Dataset.save_to_disk` writes
    it, or has Arrow's file format."""
    from pyarrow import BufferReader, ipc
    from pyarrow.parquet import ParquetFile

    if suffix == ".parquet":
        return iter(ParquetFile(BufferReader(content)).iter_batches())
    if not content.startswith(b"ARROW1"):
        return iter(ipc.open_stream(BufferReader(content)))
    reader = ipc.open_file(BufferReader(content))
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def text_of(origin: Origin, row: Row, column: str) -> str | None:
    """Return the text in a column of a row; None where there is none. Raises ConfigError for what is no text."""
    try:
        return read_text(row[1], column)
    except CellError as error:
        raise origin.error(f"row {row[0]}, column {error.column}: {error.problem}", error.fix) from error
