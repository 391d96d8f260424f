"""Reading W&B's offline files: wandb ships no reader."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, by wandb's own protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        yield record


def history(file: Path) -> dict[str, list[Any]]:
    """Everything that was logged, by its name."""
    found: dict[str, list[Any]] = {}
    for record in records(file):
        for item in record.history.item:
            found.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log after wandb's seven bytes of header."""
    position, parts = 7, []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # full, last
            yield b"".join(parts)
            parts = []
