"""Where data sets come from."""

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Columns, Config
from rlhf.data.dataset import Comparison, Dataset, Demonstration, Split
from rlhf.data.files import Origin, Row, read_rows, text_of
from rlhf.data.hub import load_split

Item = TypeVar("Item")


def load_dataset(config: Config) -> Dataset:
    """The data set that the configuration names. Raises ConfigError for what is missing."""
    if config.data.source == "demo":
        from rlhf.data.demo import demo_dataset

        return demo_dataset(config.data.demo, config.seed)
    read = file_split if config.data.source == "files" else hub_split
    return Dataset(read(config, "train"), read(config, "heldout"))


def file_split(config: Config, part: str) -> Split:
    """The records of the training or the held-out file."""
    origin = Origin(f"data.files.{part}", str(getattr(config.data.files, part)))
    return read_split(read_rows(origin), origin, config.data.columns)


def hub_split(config: Config, part: str) -> Split:
    """The records of the training or the held-out split of a hub data set."""
    hub = config.data.hub
    split: str = getattr(hub, f"{part}_split")
    rows = load_split(str(hub.name), hub.config, split, hub.revision, "data.hub.name")
    return read_split(enumerate(rows, 1), Origin("data.hub.name", f"{hub.name} ({split})"), config.data.columns)


def require_records(items: list[Item], kind: str, config: Config) -> list[Item]:
    """Held-out items, of which there must be some; said before a model is built, not after it is trained."""
    if not items:
        fix = "check the columns (data.columns) and data.max_prompt_tokens"
        raise ConfigError("data.source", config.data.source, f"it has no held-out {kind} that fit", fix)
    return items


def read_split(rows: Iterable[Row], origin: Origin, columns: Columns) -> Split:
    """Read rows as records: a record needs a prompt, and a response or a pair. What is left out is counted."""
    demonstrations, comparisons, prompts, left_out = [], [], [], Counter[str]()
    found: list[str] = []
    for row in rows:
        found = found or list(row[1])
        prompt, response, chosen, rejected = (
            text_of(origin, row, column) for column in (columns.prompt, columns.response, columns.chosen, columns.rejected)
        )
        if prompt is None:
            left_out["rows without a prompt"] += 1
            continue
        prompts.append(prompt)
        if response is not None or chosen is not None:
            demonstrations.append(Demonstration(prompt, str(response or chosen)))
        if chosen is not None and rejected is not None:
            comparisons.append(Comparison(prompt, chosen, rejected))
        elif rejected is not None:
            left_out["rejected answers without a chosen one"] += 1
    if not found:
        raise origin.error("it cannot be read (it is empty)")
    if not prompts:
        problem = f"no row has it (found: {', '.join(found)})"
        raise ConfigError("data.columns.prompt", columns.prompt, problem, "name the column that holds the prompt")
    return Split(demonstrations, comparisons, list(dict.fromkeys(prompts)), dict(left_out))
