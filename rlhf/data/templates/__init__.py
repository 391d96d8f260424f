"""Templates: how a prompt and a response become text, and the text token ids.

All text that is trained on, scored or sampled from goes through the one object that `build_template` returns.
"""

from dataclasses import replace
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates.base import ShortPrompt, Template
from rlhf.data.templates.chat import ChatTemplate
from rlhf.data.templates.jinja import encode_by_transformers, has_own_template, pin_dates
from rlhf.data.templates.plain import PlainTemplate
from rlhf.experiment.templates import PLAIN

__all__ = ["ShortPrompt", "Template", "build_saved_template", "build_template"]

KEY = "data.template"


def build_template(data: Data, tokenizer: Tokenizer) -> Template:
    """Return the template that `data.template` names, for this tokenizer.

    The tokenizer is given it as its chat template, so that what is saved describes the text that the model was trained on.

    Raises:
        ConfigError: There is no such template, or no training text can be made of it.
    """
    name = data.template
    if name == "plain" or (name == "auto" and not has_own_template(tokenizer)):
        return build_plain(data, tokenizer)
    if name.endswith(".jinja"):
        tokenizer.chat_template = read_template(name)
    elif not has_own_template(tokenizer):
        fix = "set data.template=plain, or give a template of your own, as data.template=chat.jinja"
        raise ConfigError(KEY, name, f"the tokenizer {describe(tokenizer)}has no chat template", fix)
    try:
        text = tokenizer.get_chat_template()
        if (pinned := pin_dates(text)) != text:
            tokenizer.chat_template = pinned
    except ValueError as error:
        raise ConfigError(KEY, name, f"the chat template cannot be used: {error}", "set data.template=plain") from error
    return ChatTemplate(data, tokenizer)


def build_saved_template(data: Data, tokenizer: Tokenizer) -> Template:
    """Return the template that a model was trained with, by its tokenizer: the one that it was saved with, or the plain one
    of the configuration where it has none. Raises as `build_template` does."""
    saved = tokenizer.chat_template
    if not isinstance(saved, str) or not saved.startswith(PLAIN):
        return build_template(replace(data, template="auto"), tokenizer)
    template = build_plain(data, tokenizer)
    if tokenizer.chat_template == saved:
        return template
    tokenizer.chat_template = saved  # another format than the configuration's
    return ChatTemplate(data, tokenizer)


def build_plain(data: Data, tokenizer: Tokenizer) -> PlainTemplate:
    """Return the plain template. The tokenizer is given an equivalent chat template, or none where it would cut the text
    into other tokens."""
    template = PlainTemplate(data, tokenizer)
    tokenizer.chat_template = template.write_chat_template()
    question = Message("user", "Why?")
    try:
        whole = template.read("Why?")
        ids = whole.ids + template.whole_answer(whole, "Because.")
    except Dropped as reason:
        raise ConfigError(KEY, data.template, f"no token ids can be made of it: {reason}", "use another model") from reason
    if ids != encode_by_transformers(tokenizer, (question, Message("assistant", "Because."))):
        tokenizer.chat_template = None
    return template


def read_template(path: str) -> str:
    """Return the Jinja template in a file. Raises ConfigError where there is none."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(KEY, path, f"it cannot be read ({error})", "give the path of a Jinja chat template") from error


def describe(tokenizer: Tokenizer) -> str:
    """Return where a tokenizer comes from, if it says so."""
    return f"of {tokenizer.name_or_path} " if tokenizer.name_or_path else ""
