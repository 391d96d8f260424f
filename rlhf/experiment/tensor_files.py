"""Safetensors files are opened here alone: for the names of their tensors, for the tensors one at a time, and for the bytes
that each takes."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlhf.config.errors import first_line
from rlhf.experiment.files import parse_json


def open_tensors(file: Path, framework: str = "pt") -> Any:
    """Open a safetensors file, mapped into memory: it has `keys()` and `get_tensor(name)`.

    `framework` is what tensors are read as; with "np" torch is not imported. Raises OSError, and ValueError that names the
    file if it is cut off or no safetensors file.
    """
    try:
        return safe_open(file, framework)
    except SafetensorError as error:
        raise ValueError(f"{file} is cut off, or no safetensors file ({first_line(error)})") from error


def tensor_names(file: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file. Raises OSError and ValueError as `open_tensors` does."""
    with open_tensors(file, "np") as opened:
        return set(opened.keys())


def index_of_shards(file: Path) -> dict[str, str]:
    """Return the file of each weight of a model that is split into several files, from their index `<name>.index.json`.
    Raises OSError, and ValueError that names the file if it is damaged."""
    try:
        return {str(name): str(shard) for name, shard in parse_json(file.read_text())["weight_map"].items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error


def header_and_spans(file: Path) -> list[tuple[int, int]]:
    """Return the bytes that the header takes and those of each tensor, as (begin, end), in the header's order.

    `safe_open` does not tell them. The file begins with the length of its header (8 bytes, little-endian); the header is
    JSON with `data_offsets` counted from its own end: https://huggingface.co/docs/safetensors. Raises OSError and
    ValueError, if the file is none.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is cut off, or no safetensors file")
        header, start = parse_json(stream.read(length)), 8 + length
    try:
        offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return [(0, start), *((start + begin, start + end) for begin, end in offsets)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no safetensors file ({error})") from error
