"""Reading what runs have written, of which any file may be missing, cut off or damaged."""

import contextlib
import json
import math
import re
import reprlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

# What a damaged file can raise: nothing else is expected of it.
DAMAGE = (OSError, ValueError, RecursionError, yaml.YAMLError)

# How much of the end of a growing file is looked at.
TAIL_BYTES, TAIL_LINES = 2**16, 20
# Where a top-level key begins, and what a section of YAML may have in common with others.
SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
SHARED = re.compile(r"[&*%]|<<|---|\.\.\.")
# What begins a line of YAML and may nest it, and how much of it (and of brackets anywhere) a configuration may have.
PREFIX = re.compile(r"^[\s?:-]*", re.MULTILINE)
STEEP, MANY_BRACKETS = 200, 500


class Unreadable(Exception):
    """A file is there but cannot be used; the message says why."""


def text(file: Path) -> str | None:
    """Read a file as UTF-8 text, with replacement characters for what is none; None if there is no file. Raises
    Unreadable."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreadable(f"{file.name} cannot be read ({error.strerror})") from error


def parse_json(content: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is none, or is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file. Raises Unreadable."""
    return parse_value(file, parse_json, "JSON object")


def read_yaml(file: Path) -> dict[str, Any] | None:
    """Read a YAML mapping; None if there is no such file. Raises Unreadable."""
    return parse_value(file, load_yaml, "YAML mapping")


def load_yaml(content: str) -> Any:
    """Parse YAML. The points of a sweep have most of their sections alike: each of these is parsed once."""
    sections = SECTION.split(content)
    if not SHARED.search(content) and not sections[0].strip():
        with contextlib.suppress(*DAMAGE):  # a section that ends within a text or a list: the whole is no such file
            parts = [load_section(section) for section in sections[1:]]
            if parts and all(isinstance(part, dict) and len(part) == 1 for part in parts):
                return {key: value for part in parts for key, value in part.items()}
    return load_section(content)


@lru_cache(maxsize=2**12)
def load_section(content: str) -> Any:
    """Parse YAML in C, which is many times as fast, but for what may be nested so deeply that it would crash there."""
    flow = sum(content.count(bracket) for bracket in "[{")
    steep = any(len(prefix) > STEEP for prefix in PREFIX.findall(content))
    loader = yaml.SafeLoader if flow > MANY_BRACKETS or steep else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(content, loader)


def parse_value(file: Path, parse: Any, kind: str) -> dict[str, Any] | None:
    """Read a file and `parse` it into a mapping; None if there is no such file. Raises Unreadable, which names the `kind`
    of content."""
    content = text(file)
    if content is None:
        return None
    try:
        value = parse(content)
    except DAMAGE as error:
        raise Unreadable(f"{file.name} is cut off or damaged: no {kind}") from error
    if not isinstance(value, dict):
        raise Unreadable(f"{file.name} holds no {kind}")
    return value


def read_lines(file: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the objects of a JSON Lines file, None for a line that is damaged; nothing if there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.strip():
                    yield line_object(line)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise Unreadable(f"{file.name} cannot be read ({error.strerror})") from error


def read_last_lines(file: Path) -> list[dict[str, Any] | None]:
    """Return the objects of the last TAIL_LINES lines of a JSON Lines file, None for a damaged line. Only the file's last
    TAIL_BYTES are read, and a last line without its end is left out: it is being written, or was cut off by a kill."""
    try:
        with file.open("rb") as stream:
            start = max(0, stream.seek(0, 2) - TAIL_BYTES)
            stream.seek(start)
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unreadable(f"{file.name} cannot be read ({error.strerror})") from error
    return [line_object(line) for line in lines[1 if start else 0 : -1][-TAIL_LINES:]]


def line_object(line: str | bytes) -> dict[str, Any] | None:
    """Parse a line of JSON Lines into an object; None if it is damaged."""
    try:
        value = parse_json(line)
    except DAMAGE:
        return None
    return value if isinstance(value, dict) else None


def as_float(value: Any) -> float | None:
    """Return the value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the floats
        return None


def as_int(value: Any) -> int | None:
    """Return the value as an int, rounded towards zero, if it is a finite number, else None."""
    known = as_float(value)
    return None if known is None else int(known)


def as_text(value: Any) -> str | None:
    """Return a text as it is, None for None, and anything else as JSON (its beginning where it is nested too deeply)."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=str)
    except (RecursionError, ValueError):
        return reprlib.repr(value)


def as_mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_floats(value: Any) -> dict[str, float]:
    """Return the entries of a mapping that are finite numbers."""
    known = {name: as_float(entry) for name, entry in as_mapping(value).items()}
    return {str(name): entry for name, entry in known.items() if entry is not None}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping: dotted keys with their values; lists are values."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
