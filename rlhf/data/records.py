"""What data sets are made of, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Columns, Config
from rlhf.data.hub import load_split

Item = TypeVar("Item")
# What the datasets library calls the types of files.
FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Comparison:
    """Two responses to a prompt, of which the first was preferred."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Split:
    """Records for the three stages."""

    demonstrations: list[Demonstration]
    comparisons: list[Comparison]
    prompts: list[str]


@dataclass(frozen=True)
class Dataset:
    """Training and held-out records. `gold` judges (prompt, response) where a true reward is known; training never sees
    it. `agreement` is the accuracy that a perfect judge has on the held-out comparisons, given their label noise."""

    train: Split
    heldout: Split
    gold: Callable[[str, str], float] | None = field(default=None)
    agreement: float | None = field(default=None)


def load_dataset(config: Config) -> Dataset:
    """The data set that the configuration names. Raises ConfigError for what is missing."""
    if config.data.source == "demo":
        from rlhf.data.demo import demo_dataset

        return demo_dataset(config.data.demo, config.seed)
    rows = file_rows(config) if config.data.source == "files" else hub_rows(config)
    train, heldout = (split_rows(part, config.data.columns) for part in rows)
    return Dataset(train, heldout)


def require(items: list[Item], kind: str, config: Config) -> list[Item]:
    """Held-out items, of which there must be some; said before a model is built, not after it is trained."""
    if not items:
        fix = "check the columns (data.columns) and data.max_prompt_tokens"
        raise ConfigError("data.source", config.data.source, f"it has no held-out {kind} that fit", fix)
    return items


def file_rows(config: Config) -> list[list[dict[str, object]]]:
    """Rows of the training and the held-out file."""
    import datasets

    rows = []
    for key in ("train", "heldout"):
        path = str(getattr(config.data.files, key))
        if Path(path).suffix not in FORMATS:
            raise ConfigError(f"data.files.{key}", path, "unknown file type", f"give one of {', '.join(FORMATS)}")
        try:
            rows.append(list(datasets.load_dataset(FORMATS[Path(path).suffix], data_files=path, split="train")))
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
            reason = (str(error.__cause__ or error).strip() or "it is empty").splitlines()[0]
            raise ConfigError(f"data.files.{key}", path, f"it cannot be read ({reason})", "check the file") from error
    return rows


def hub_rows(config: Config) -> list[list[dict[str, object]]]:
    """Rows of the two splits of a hub data set."""
    hub = config.data.hub
    return [
        list(load_split(str(hub.name), hub.config, split, hub.revision, "data.hub.name"))
        for split in (hub.train_split, hub.heldout_split)
    ]


def split_rows(rows: list[dict[str, object]], columns: Columns) -> Split:
    """Rows as records; a record needs a prompt, and a response or a pair."""
    demonstrations, comparisons, prompts = [], [], []
    for row in rows:
        prompt = str(row.get(columns.prompt) or "")
        response = row.get(columns.response) or row.get(columns.chosen)
        if not prompt:
            continue
        prompts.append(prompt)
        if response:
            demonstrations.append(Demonstration(prompt, str(response)))
        if row.get(columns.chosen) and row.get(columns.rejected):
            comparisons.append(Comparison(prompt, str(row[columns.chosen]), str(row[columns.rejected])))
    if not prompts:
        found = ", ".join(rows[0]) if rows else "no rows at all"
        raise ConfigError(
            "data.columns.prompt",
            columns.prompt,
            f"no row has it (found: {found})",
            "name the column that holds the prompt",
        )
    return Split(demonstrations, comparisons, list(dict.fromkeys(prompts)))
