"""Cells of a row: text and messages, with the types that they are written with. Nothing is converted."""

import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any

from rlhf.data.dataset import Message, Prompt

Cells = Mapping[str, Any]

TYPES = {
    str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object",
    bytes: "bytes", date: "a date or time", time: "a date or time",
}  # fmt: skip
# Who speaks, as data sets call them.
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "system": "system",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
# The keys of a message: who speaks, and the text. The second pair is ShareGPT's.
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
# The lines that begin the further turns of HelpSteer2's prompts.
MARKED_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


class CellError(ValueError):
    """A cell that is not of the type that belongs there.

    Attributes:
        column: The column, with the place inside a list or an object, as `chosen[1].content`.
        problem: Why the cell cannot be read.
        fix: How to write it.
    """

    def __init__(self, column: str, problem: str, fix: str) -> None:
        super().__init__(f"column {column}: {problem}; {fix}")
        self.column, self.problem, self.fix = column, problem, fix


class Dropped(Exception):
    """A row that holds no record. The message says which rows these are, in the plural, as in "3 rows without a prompt"."""


def name_type(value: Any) -> str:
    """Return what the type of a value is called."""
    if value is None:
        return "null"
    return next((name for kind, name in TYPES.items() if isinstance(value, kind)), type(value).__name__)


def check_text(value: Any, column: str) -> str:
    """Return a value that is text. Raises CellError for any other, and for half a character."""
    if not isinstance(value, str):
        fix = "write it as text" + (", in quotes" if isinstance(value, int | float) else "")
        if isinstance(value, list | dict):
            fix += ", or as messages: [{role: user, content: ...}, ...]"
        raise CellError(column, f"it is {name_type(value)}, not text", fix)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise CellError(column, "it holds half a character (a lone surrogate)", "write the whole character")
    return value


def read_text(cells: Cells, column: str) -> str | None:
    """Return the text in a column; None where the row has no such column, or null in it. An empty text is a text. Raises
    CellError for anything else."""
    value = cells.get(column)
    return None if value is None else check_text(value, column)


def require_text(cells: Cells, column: str, what: str) -> str:
    """Return the text in a column. Raises Dropped, naming `what` the row lacks, where there is none."""
    value = read_text(cells, column)
    if value is None:
        raise Dropped(f"rows without {what}")
    return value


def require_list(cells: Cells, column: str, what: str) -> Sequence[Any]:
    """Return the list in a column. Raises Dropped where there is none or an empty one, CellError for another type."""
    value = cells.get(column)
    if value is None:
        raise Dropped(f"rows without {what}")
    if not isinstance(value, list):
        raise CellError(column, f"it is {name_type(value)}, not a list", "write a list")
    if not value:
        raise Dropped(f"rows without {what}")
    return value


def require_number(cells: Cells, column: str, what: str) -> float:
    """Return the number in a column. Raises Dropped where there is none, CellError for another type."""
    value = cells.get(column)
    if value is None:
        raise Dropped(f"rows without {what}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CellError(column, f"it is {name_type(value)}, not a number", "write a number, without quotes")
    return float(value)


def require_object(value: Any, column: str) -> Cells:
    """Return a value that is an object. Raises CellError for any other."""
    if not isinstance(value, dict):
        raise CellError(column, f"it is {name_type(value)}, not an object", "write an object: {...}")
    return value


def is_messages(value: Any) -> bool:
    """Tell whether a value is a list of messages: objects with who speaks and the text."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and any(who in item for who, _ in MESSAGE_KEYS) for item in value)
    )


def read_messages(cells: Cells, column: str) -> tuple[Message, ...] | None:
    """Return the messages in a column; None where there are none.

    Raises:
        CellError: The cell is no list of messages, or a message's text is no text.
        Dropped: Somebody speaks who is neither user nor assistant nor system, as a tool.
    """
    value = cells.get(column)
    if value is None or value == []:
        return None
    if not is_messages(value):
        raise CellError(column, f"it is {name_type(value)}, not messages", "write [{role: user, content: ...}, ...]")
    return tuple(read_message(item, f"{column}[{place}]") for place, item in enumerate(value))


def read_message(item: Cells, column: str) -> Message:
    """Return a message of a list. Raises as `read_messages` does."""
    who, what = next(keys for keys in MESSAGE_KEYS if keys[0] in item)
    role = check_text(item[who], f"{column}.{who}")
    if role.lower() not in ROLES:
        raise Dropped(f"conversations in which {role[:40]!r} speaks")
    if what not in item:
        raise CellError(f"{column}.{what}", "there is no such key", f"write {{{who}: {role}, {what}: ...}}")
    return Message(ROLES[role.lower()], check_text(item[what], f"{column}.{what}"))


def split_marked_turns(prompt: str) -> Prompt:
    """Return the messages of a HelpSteer2 prompt of several turns, which stand under lines "<extra_id_1>Assistant" and
    "<extra_id_1>User"; a prompt without such lines as it is."""
    first, *parts = MARKED_TURN.split(prompt)
    turns = [Message(who.lower(), said) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return (Message("user", first), *turns) if turns else prompt
