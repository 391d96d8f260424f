"""From the records of a stage to rows of token ids, by several processes where there are many."""

import hashlib
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from rlhf.data.cells import Dropped
from rlhf.data.counted import SAME_TEXT, TOO_LONG
from rlhf.data.dataset import Comparison, Demonstration, Labelled, Message, Prompt, Split
from rlhf.data.templates import ShortPrompt, Template

# Records that a process encodes at a time, and how many there must be for each further process: it starts in seconds.
CHUNK, WORTH_A_PROCESS = 500, 10_000
# The most processes that encode.
MOST_PROCESSES = 16

# A row as it is written, or the reason why a record is dropped.
Row = dict[str, Any]

# The columns of each kind of data (rlhf/data/rows.py): ids; what the assistant said of the prompt (`said`); what the prompt
# was before the template, and what else is known of it (`record`); numbers that tell a prompt's ids, and its text, from
# others (`group`, `origin`).
PROMPT = {"prompt": "ids", "said": "flags", "record": "text", "group": "hash", "origin": "hash"}
COLUMNS = {
    "demonstrations": {**PROMPT, "response": "ids", "cut": "bool"},
    "comparisons": {
        **PROMPT, "chosen": "ids", "chosen_cut": "bool", "rejected": "ids", "rejected_cut": "bool", "gap": "float",
        "margin": "float",
    },
    "labelled": {**PROMPT, "response": "ids", "cut": "bool", "desirable": "bool"},
    "prompts": PROMPT,
    "texts": {**PROMPT, "response": "ids", "cut": "bool"},
}  # fmt: skip


class RecordEncoder:
    """Encodes demonstrations, comparisons, labelled responses and prompts; with `turns` only those of whose prompt it can
    be told what the assistant says in it."""

    def __init__(self, template: Template, turns: bool = False) -> None:
        self.template, self.turns = template, turns

    def __call__(self, record: Any) -> Row | str:
        """Return the row of a record, or the reason why it is dropped."""
        if isinstance(record, Comparison) and record.chosen == record.rejected:
            return SAME_TEXT
        try:
            return self.encode(record)
        except Dropped as reason:
            return str(reason)

    def encode(self, record: Any) -> Row | str:
        """Return the row of a record, or why its prompt is dropped. Raises Dropped for one that has no text."""
        prompt = prompt_of(record)
        short = self.template.shorten(prompt)
        if short is None:
            return TOO_LONG
        if self.turns and short.said is None and has_turns(short.prompt):
            return "conversations of which it cannot be told what the assistant says"
        origin = hash_bytes(write_record(prompt, {}).encode())
        row: Row = {"prompt": short.ids, "said": short.said, "group": hash_ids(short.ids), "origin": origin}
        if isinstance(record, Demonstration | Labelled):
            row |= self.encode_answer(short, record.response, "response", "cut")
        if isinstance(record, Comparison):
            row |= self.encode_answer(short, record.chosen, "chosen", "chosen_cut")
            row |= self.encode_answer(short, record.rejected, "rejected", "rejected_cut")
        return row

    def encode_answer(self, short: ShortPrompt, text: str, ids: str, cut: str) -> Row:
        """Return the columns of a response."""
        answer = self.template.encode_answer(short, text)
        return {ids: answer.response, cut: answer.cut}


class TextEncoder:
    """Encodes texts, and demonstrations as such, neither shortened nor with a mask, but cut at `limit` tokens."""

    def __init__(self, template: Template, limit: int) -> None:
        self.template, self.limit = template, limit

    def __call__(self, text: str | Demonstration) -> Row | str:
        """Return the row of a text, or the reason why it is dropped."""
        try:
            if isinstance(text, str):
                ids = self.template.encode_text(text)
            else:
                ids = self.template.encode_whole(text.prompt, text.response)
        except Dropped as reason:
            return str(reason)
        if len(ids) < 2:
            return "empty"
        cut = len(ids) > self.limit
        return {"prompt": [], "said": None, "response": ids[: self.limit], "cut": cut, "group": 0, "origin": 0}


def has_turns(prompt: Prompt) -> bool:
    """Whether the assistant speaks in a prompt."""
    return not isinstance(prompt, str) and any(message.role == "assistant" for message in prompt)


def prompt_of(record: Any) -> Prompt:
    """Return the prompt of a record."""
    found: Prompt = record.prompt if isinstance(record, Demonstration | Comparison | Labelled) else record
    return found


def records_of(kind: str, split: Split) -> Sequence[Any]:
    """Return the records of a kind that a part has."""
    found: Sequence[Any] = getattr(split, kind)
    return found


def to_bytes(ids: list[int]) -> bytes:
    """Return token ids as bytes, four of each."""
    return np.asarray(ids, dtype=np.int32).tobytes()


def hash_ids(ids: list[int]) -> int:
    """Return 64 bits that tell token ids from others."""
    return hash_bytes(to_bytes(ids))


def hash_bytes(*parts: bytes) -> int:
    """Return 64 bits that tell some bytes from others."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


def encode_all(encoder: Callable[[Any], Row | str], records: Sequence[Any]) -> Iterator[Row | str]:
    """Yield the row of each record, or the reason why it is dropped, in the records' order. Where there are many, several
    processes encode them, a few hundred at a time, so that what is held does not grow."""
    processes = count_processes(encoder, len(records))
    if processes == 1:
        yield from map(encoder, records)
        return
    with multiprocessing.get_context("spawn").Pool(processes, set_encoder, (encoder,)) as pool:
        for rows in pool.imap(encode_chunk, chunks(records)):
            yield from rows


def count_processes(encoder: Callable[[Any], Row | str], records: int) -> int:
    """Return how many processes encode so many records: 1 where the encoder cannot be sent to others, as a tokenizer of a
    model's own code may not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(cores, MOST_PROCESSES, records // WORTH_A_PROCESS)
    if wanted < 2:
        return 1
    try:
        pickle.loads(pickle.dumps(encoder))
    except (pickle.PicklingError, AttributeError, ImportError, TypeError):
        return 1
    return wanted


def chunks(records: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the records, some hundred at a time."""
    rest = iter(records)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


# The encoder of a process that encodes chunks.
ENCODER: list[Callable[[Any], Row | str]] = []


def set_encoder(encoder: Callable[[Any], Row | str]) -> None:
    """Keep the encoder in a process that was started to encode."""
    ENCODER[:] = [encoder]


def encode_chunk(records: list[Any]) -> list[Row | str]:
    """Encode some records, in a process that was started for that."""
    return [ENCODER[0](record) for record in records]


def write_record(prompt: Prompt, meta: Mapping[str, Any]) -> str:
    """Return a prompt, with what else is known of it, as a text that `read_record` reads."""
    messages = prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]
    return json.dumps([messages, dict(meta)] if meta else [messages], ensure_ascii=False, default=str)


def read_record(text: str) -> tuple[Prompt, dict[str, Any]]:
    """Return a prompt, and what else is known of it."""
    messages, *meta = json.loads(text)
    prompt = messages if isinstance(messages, str) else tuple(Message(*message) for message in messages)
    return prompt, meta[0] if meta else {}
