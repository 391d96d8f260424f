"""The answers of an evaluation in its stage's directory: written as they are made, read by whoever compares models. No
torch.

A line of answers.jsonl is an answer:

    number      the sample's number: the prompt's number times evaluate.samples, plus the number among the prompt's samples
    prompt      the text of the prompt, and `index`, its number; of a conversation its `messages` too
    meta        what else the prompt's record says
    response    the text of the answer; `length` in tokens, `ended` whether it reached its end
    score       the weighted sum of the rewards; `rewards` each by its name (null where it does not apply); `gold`
    kl, kl3     summed k1 and k3 estimates of the KL to the reference, in nats; null without one
    entropy     of the policy's distributions, mean over the answer's tokens, in nats
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from rlhf.experiment.files import parse_json

FILE = "answers.jsonl"
Row = dict[str, Any]


def read_answers(directory: Path) -> list[Row]:
    """Return the answers that a directory holds."""
    return read_rows(directory / FILE)


def keep_answers(directory: Path, rows: Sequence[Row]) -> None:
    """Write these answers alone: those of a part that was broken off are made again."""
    write_rows(directory / FILE, rows, "w")


def add_answers(directory: Path, rows: Sequence[Row]) -> None:
    """Add answers; when this returns they have reached the disk."""
    write_rows(directory / FILE, rows, "a")


def read_rows(file: Path) -> list[Row]:
    """Return the lines of a file; a last one that is cut off is left out."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    return [parse_json(line) for line in whole.decode().splitlines() if line]


def write_rows(file: Path, rows: Iterable[Row], mode: Literal["w", "a"]) -> None:
    """Write lines in place of those of a file, or add them; when this returns they have reached the disk."""
    with file.open(mode, encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        stream.flush()
        os.fsync(stream.fileno())
