"""Rows of token ids in Arrow files: written as they come, and read memory-mapped, so that what a process holds of them does
not grow with their number."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

# Rows that are held in memory before they are written together.
BATCH = 1000
# The types of columns, by the names that a layout gives them.
TYPES = {
    "ids": pa.list_(pa.int32()),
    "flags": pa.list_(pa.int8()),
    "bool": pa.bool_(),
    "float": pa.float64(),
    "int": pa.int64(),
    "hash": pa.uint64(),
    "text": pa.large_string(),
}


class RowWriter:
    """Writes rows to an Arrow file, a thousand at a time."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self.schema = pa.schema([(name, TYPES[kind]) for name, kind in columns.items()])
        self.stream = pa.OSFile(str(path), "wb")
        self.writer = pa.ipc.new_file(self.stream, self.schema)
        self.waiting: list[Mapping[str, Any]] = []
        self.count = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row, which has a value for every column."""
        self.waiting.append(row)
        self.count += 1
        if len(self.waiting) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self.waiting:
            self.writer.write_batch(pa.RecordBatch.from_pylist(self.waiting, self.schema))
            self.waiting = []

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self.flush()
        self.writer.close()
        self.stream.close()


@contextmanager
def write_rows(path: Path, columns: Mapping[str, str]) -> Iterator[RowWriter]:
    """Write rows to a new Arrow file within this context; `columns` are their names with a key of TYPES each."""
    writer = RowWriter(path, columns)
    try:
        yield writer
        writer.close()
    finally:
        writer.stream.close()


class Rows:
    """The rows of an Arrow file. The file stays on disk: the system reads what is asked for, and shares it among all
    processes of a machine."""

    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.columns = dict(zip(table.column_names, table.columns, strict=True))
        self.count: int = table.num_rows

    def __len__(self) -> int:
        return self.count

    def ids(self, column: str, row: int) -> list[int]:
        """Return the token ids in a column of a row."""
        found: list[int] = self.columns[column][row].values.to_numpy().tolist()
        return found

    def cell(self, column: str, row: int) -> Any:
        """Return the value in a column of a row."""
        return self.columns[column][row].as_py()

    def numbers(self, column: str) -> np.ndarray:
        """Return a column of numbers, [rows]."""
        return np.asarray(self.columns[column].to_numpy())
