"""Jinja chat templates, as transformers renders them."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from rlhf.config.errors import first_line
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message
from rlhf.data.encoded import Tokenizer
from rlhf.experiment.templates import PLAIN

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
NOW = re.compile(r"strftime_now\(\s*(\"[^\"]*\"|'[^']*')\s*\)")
# The day that templates are rendered on, the one that Llama 3.1's own has: a text must not depend on the day of a run.
TODAY = datetime(2024, 7, 26)


def render_messages(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False) -> str:
    """Return the template's text of a conversation. Raises Dropped where the template refuses it."""
    text, _ = render_with_marks(tokenizer, messages, generation_prompt, marks=False)
    return text


def find_marks(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Return where `{% generation %}` says that the assistant speaks in the text of a prompt."""
    _, spans = render_with_marks(tokenizer, messages, generation_prompt=True, marks=True)
    return spans


def render_with_marks(
    tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool, marks: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Return the template's text of a conversation, and the spans that `{% generation %}` marks in it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    said = [{"role": message.role, "content": message.content} for message in messages]
    try:
        found: Any = render_jinja_template(
            [said], chat_template=tokenizer.get_chat_template(), return_assistant_tokens_mask=marks,
            add_generation_prompt=generation_prompt, **tokenizer.special_tokens_map,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise Dropped(f"conversations that the chat template refuses ({first_line(error)})") from error
    texts, spans = found
    return str(texts[0]), [(int(start), int(stop)) for start, stop in spans[0]] if marks else []


def has_generation_marks(tokenizer: Tokenizer) -> bool:
    """Whether the template marks what the assistant says by `{% generation %}`."""
    return GENERATION.search(tokenizer.get_chat_template()) is not None


def mark_text(number: object) -> str:
    """Return a text that stands for a message of a conversation: characters for private use, which no text holds."""
    return f"\ue000{number}\ue001"


def find_end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of the tokens that end a response: the one that ends a turn in the tokenizer's chat template, on which
    models are trained, and end-of-text."""
    eos = int(tokenizer.eos_token_id)
    if not tokenizer.chat_template:
        return (eos,)
    try:
        text = render_messages(tokenizer, (Message("user", "Why?"), Message("assistant", mark_text(0))))
    except Dropped:
        return (eos,)
    after = text.rpartition(mark_text(0))[2]
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    found = [token for token in added if token in after]
    if not found:
        return (eos,)
    first = min(found, key=lambda token: (after.index(token), -len(token)))
    return tuple(dict.fromkeys((int(added[first]), eos)))


def encode_by_transformers(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False) -> list[int]:
    """Return a conversation's ids as `apply_chat_template` of transformers gives them."""
    said = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=generation_prompt, return_dict=False)
    return [int(token) for token in ids]


def has_own_template(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer brings a chat template that is not made of data.prompt_format."""
    found = tokenizer.chat_template
    return bool(found) and not (isinstance(found, str) and found.startswith(PLAIN))


def pin_dates(template: str) -> str:
    """Return a template whose text does not depend on the day on which it is rendered. Raises ValueError where the format
    of a date is not written in it."""
    if "strftime_now" not in template:
        return template
    formats = dict.fromkeys(found[1:-1] for found in NOW.findall(template))
    if template.count("strftime_now(") != len(NOW.findall(template)):
        raise ValueError("its text depends on the day on which it is rendered")
    cases = "".join(
        f"{{%- if format == {quote(form)} -%}}{{{{- {quote(TODAY.strftime(form))} -}}}}{{%- endif -%}}" for form in formats
    )
    return f"{{%- macro strftime_now(format) -%}}{cases}{{%- endmacro %}}{template}"


def quote(text: str) -> str:
    """Return a text as a literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)
