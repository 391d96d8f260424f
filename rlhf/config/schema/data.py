"""Records: prompts, demonstrations, preferences and plain texts. Lengths are in tokens."""

from dataclasses import dataclass
from typing import Any

from rlhf.config.metadata import COUNT, FROM_ZERO, WHOLE, Range, above_zero, key

# Shares of a part that leave something of it.
HELD_OUT = Range(0, 1, open_low=True, open_high=True)


@dataclass
class DemoData:
    """The generated data set."""

    heldout_prompts: int = key(Range(1, 359))
    demonstrations: int = key(Range(1, 1e6))
    answers_per_prompt: int = key(Range(2, 32))
    rounds: int = key(Range(1, 1000))
    label_noise: float = key(Range(0, 1e3), neutral=0.0)
    turns: int = key(Range(1, 4), neutral=1)


@dataclass
class Files:
    """Paths of your own records."""

    train: Any = key(content="records", optional=True)
    heldout: Any = key(content="records", optional=True)


@dataclass
class Hub:
    """A data set of the Hugging Face hub."""

    name: str | None = key()
    config: str | None = key()
    revision: str | None = key()
    data_dir: str | None = key(neutral=None)
    train_split: str = key()
    heldout_split: str | None = key()
    train_rows: int | None = key(WHOLE, effect="name", unit="rows")
    heldout_rows: int | None = key(WHOLE, effect="name", unit="rows")
    licence: str | None = key(effect="name")


@dataclass
class Columns:
    """Column names in files and hub data sets."""

    prompt: str = key()
    response: str = key()
    chosen: str = key()
    rejected: str = key()


@dataclass
class Member:
    """A set of a mixture: how much of it is taken, where its rows are, and how they are read."""

    weight: float | None = key(above_zero(1e9), effect="result", neutral=None)
    records: int | None = key(COUNT, effect="result", neutral=None, unit="records")
    split: list[float] | None = key(FROM_ZERO, effect="result", neutral=None)
    source: str = key(choices=("files", "hub"), effect="result")
    converter: str = key(effect="result", neutral="auto", content="function")
    heldout_fraction: float | None = key(HELD_OUT, effect="result", neutral=None, content="share")
    files: Files = key(effect="result")
    hub: Hub = key(effect="result")
    columns: Columns = key(effect="result")


@dataclass
class Data:
    """Prompts, demonstrations and preferences; lengths in tokens."""

    source: str = key(choices=("demo", "files", "hub", "mixture"))
    mix: dict[str, Member] | None = key(neutral=None, content="mixture")
    stopping_strategy: str = key(choices=("first_exhausted", "all_exhausted"), only_with="mix")
    split: list[float] | None = key(FROM_ZERO, neutral=None)
    share: int | None = key(Range(0, 2), neutral=None)
    converter: str = key(neutral="auto", content="function")
    heldout_fraction: float | None = key(HELD_OUT, neutral=None, content="share")
    format: str = key(choices=("plain", "deepspeed-chat"), neutral="plain")
    template: str = key(neutral="plain", content="template")
    prompt_format: str = key()
    response_format: str = key(neutral=" {response}")
    max_prompt_tokens: int = key(COUNT, unit="tokens")
    max_response_tokens: int = key(COUNT, unit="tokens")
    truncation: str = key(choices=("paragraphs", "left", "drop"))
    tokenizer_vocab_size: int = key(Range(300, 1e7))
    demo: DemoData = key()
    files: Files = key()
    hub: Hub = key()
    columns: Columns = key()


@dataclass
class Text:
    """Plain text for PPO's pre-training loss."""

    source: str = key(choices=("demonstrations", "file", "hub"))
    file: str | None = key(content="records")
    hub: str | None = key()
    config: str | None = key()
    revision: str | None = key()
    split: str = key()
    column: str = key()
