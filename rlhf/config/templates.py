"""The keys that say how conversations become text."""

from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config

# What a format puts its text around, by its key.
FORMATS = {"prompt_format": "prompt", "response_format": "response"}
CHOICES = "choose auto, plain or chat, or give a Jinja file, as data.template=chat.jinja"


def read_line_breaks(values: dict[str, Any]) -> None:
    """Make a backslash with an n a line break in the formats: it is how a line break is typed in a shell."""
    data = values.get("data")
    for key in FORMATS:
        if isinstance(data, dict) and isinstance(data.get(key), str):
            data[key] = data[key].replace("\\n", "\n")


def check_template(config: Config) -> Iterator[ConfigError]:
    """Check that there is such a template, that it can be used with the data and the model, and that formats are some."""
    data, key = config.data, "data.template"
    for name, field in FORMATS.items():
        yield from check_format(f"data.{name}", getattr(data, name), field)
    if data.format == "deepspeed-chat" and data.response_format != " {response}":
        fix = "leave it out, or set data.format=plain"
        yield ConfigError("data.response_format", data.response_format, "data.format=deepspeed-chat has its own", fix)
    if data.template in ("auto", "plain"):
        return
    if data.format == "deepspeed-chat":
        problem = "data.format=deepspeed-chat has the texts of DeepSpeed-Chat, which are no conversations"
        yield ConfigError(key, data.template, problem, "set data.template=plain, or data.format=plain")
    if data.template == "chat":
        return
    if not data.template.endswith(".jinja"):
        yield ConfigError(key, data.template, "there is no such template", CHOICES)
    elif not Path(data.template).expanduser().is_file():
        yield ConfigError(key, data.template, "there is no such file", CHOICES)
    elif config.model.path is None:
        problem = f"model={config.model.name} trains its tokenizer, which has its own chat template"
        yield ConfigError(key, data.template, problem, "set data.template=chat, or give a model with a tokenizer")


def check_format(key: str, text: str, field: str) -> Iterator[ConfigError]:
    """Check that a format holds its text once, and no other braces but doubled ones."""
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None]
    except ValueError:
        parts = []
    if parts == [(field, "", None)]:
        return
    place = f"{{{field}}}"
    if text.count(place) == 1:
        before, after = (double_braces(part) for part in text.split(place))
        problem, fix = "other braces must be doubled", f"write {before}{place}{after}"
    elif [name for name, _, _ in parts] == [field]:
        problem, fix = f"the {field} is put in as it is", f"write {place}, without : or !"
    else:
        times = len([name for name, _, _ in parts if name == field])
        problem = f"it has no place for the {field}" if times == 0 else f"it has several places for the {field}"
        fix = f"add {place}, once, and double other braces, as {{{{ and }}}}"
    yield ConfigError(key, text, problem, fix)


def double_braces(text: str) -> str:
    """Return a text with every brace doubled, once."""
    for brace in "{}":
        text = text.replace(2 * brace, brace).replace(brace, 2 * brace)
    return text
