"""Writing files so that each appears whole or not at all, whenever the process is killed."""

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str, durable: bool = True, private: bool = False) -> None:
    """Replace a file's content in one step. When this returns it has reached the disk, unless it need not be `durable`.
    A `private` file is never readable by others, not even while it is written. Raises OSError, which names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w", opener=open_private if private else None) as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is not None and error.filename is None:  # a disk that is full says no more than that
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if durable:
        sync_directory(path.parent)


def open_private(path: str, flags: int) -> int:
    """Open a new file that its owner alone can read, as `open` asks for it."""
    return os.open(path, flags | os.O_EXCL, 0o600)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory have reached the disk: else a file that was renamed may be gone, or be the old
    one, after a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and write names through anyway
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, durable: bool = True, private: bool = False) -> None:
    """Write a JSON file in one step."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=True) + "\n", durable, private)
