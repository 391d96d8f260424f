"""Answers for scripts: to one prompt, or to a file of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rlhf.chat.conversation import Conversation, Turn, describe_turn
from rlhf.chat.model import Draw, Messages, TooLong, describe_unreadable
from rlhf.chat.session import Session
from rlhf.config.errors import ConfigError, raise_problems
from rlhf.data.cells import CellError, Cells, Dropped, read_messages
from rlhf.data.converters import convert_pairs
from rlhf.data.dataset import Message, Prompt
from rlhf.data.files import FORMATS, Origin, Row, read_files
from rlhf.data.templates.chat import as_messages

FIX = "shorten it, or leave out what the template does not know"


def answer_prompt(session: Session, prompt: str) -> None:
    """Print the answer to a prompt and nothing else. Raises ConfigError where there is none."""
    try:
        session.ask(prompt)
    except (TooLong, Dropped) as error:
        raise ConfigError("--prompt", prompt, describe_unreadable(error), FIX) from error


def answer_file(session: Session, path: str, is_scored: bool) -> None:
    """Print a record for each prompt of a file and each model, as JSON Lines. A prompt's answer depends on the seed and on
    its place in the file. Raises ConfigError, before anything is answered, for prompts that cannot be."""
    turns: list[tuple[Conversation, Turn]] = []
    problems: list[ConfigError] = []
    for number, prompt in enumerate(read_prompts(path)):
        for conversation in session.conversations:
            messages, draw = with_system(prompt, conversation.system), Draw(conversation.seed, 0, number)
            try:
                answer = conversation.model.answer(messages, conversation.rollout, draw)
                turns.append((conversation, Turn(messages, answer, draw, {})))
            except (TooLong, Dropped) as error:
                problems.append(ConfigError("--prompts", f"{path}, prompt {number + 1}", describe_unreadable(error), FIX))
    raise_problems(problems)
    if is_scored:
        session.scorer = session.build_scorer()
    for conversation, turn in turns:
        turn.answer.finish()
        turn.record = describe_turn(conversation.model, conversation.rollout, turn)
        if is_scored:
            session.add_scores(turn)
        conversation.cleared.append(turn)
        sys.stdout.write(json.dumps(turn.record, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    session.write_transcript()


def with_system(prompt: Prompt, system: str | None) -> Messages:
    """Return a prompt as a conversation, after the system message if it has none itself."""
    messages = as_messages(prompt)
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


def read_prompts(path: str) -> list[Prompt]:
    """Return the prompts of a file: one a line of a .txt file or of standard input (-), else the column `prompt` or
    `messages` of its rows. Raises ConfigError where there is none."""
    origin = Origin("--prompts", path)
    if path == "-":
        rows: Iterator[Row] = enumerate(({"text": line.rstrip("\r\n")} for line in sys.stdin), 1)
    else:
        expanded = str(Path(path).expanduser())
        rows = (row for _, row in read_files(Origin("--prompts", expanded), expanded, (*FORMATS, ".txt")))
    found = [read_prompt(origin, number, cells) for number, cells in rows if cells.get("text") != ""]
    if not found:
        raise origin.error("it holds no prompt", "write one a line, or JSON Lines with `prompt`")
    return found


def read_prompt(origin: Origin, number: int, cells: Cells) -> Prompt:
    """Return the prompt of a row: a text or messages. Raises ConfigError, which names the row."""
    try:
        if "prompt" in cells or "text" in cells:
            return next(convert_pairs({"prompt": cells.get("prompt", cells.get("text"))})).prompt
        if (messages := read_messages(cells, "messages")) is not None:
            return messages
        raise Dropped("rows without a prompt")
    except (CellError, Dropped) as error:
        fix = "write text, or messages, in the column `prompt`"
        raise origin.error(f"row {number} cannot be read ({error})", fix) from error
