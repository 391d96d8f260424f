"""Plain text for PPO's pre-training loss: from a file, the hub, or the data set's own demonstrations."""

from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Text
from rlhf.data.hub import load_split
from rlhf.data.records import FORMATS, Demonstration


def load_texts(ptx: Text, prompt_format: str, demonstrations: list[Demonstration]) -> list[str]:
    """The texts that `ppo.ptx` names. Raises ConfigError for what cannot be read."""
    if ptx.source == "demonstrations":
        return [f"{prompt_format.format(prompt=d.prompt)} {d.response.strip()}" for d in demonstrations]
    if ptx.source == "file":
        place, rows = str(ptx.file), file_rows(str(ptx.file))
    else:
        place = str(ptx.hub)
        rows = load_split(place, ptx.config, ptx.split, ptx.revision, "ppo.ptx.hub")
    if ptx.column not in rows.column_names:
        fix = f"choose among {', '.join(rows.column_names)}"
        raise ConfigError("ppo.ptx.column", ptx.column, f"{place} has no such column", fix)
    return [str(text) for text in rows[ptx.column] if text]


def file_rows(place: str) -> Any:
    """The rows of a file; of plain text its lines."""
    import datasets

    key, formats = "ppo.ptx.file", {".txt": "text", **FORMATS}
    if Path(place).suffix not in formats:
        raise ConfigError(key, place, "unknown file type", f"give one of {', '.join(formats)}")
    try:
        return datasets.load_dataset(formats[Path(place).suffix], data_files=place, split="train")
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        raise ConfigError(key, place, f"it cannot be read ({first_line(error)})", "check the file") from error
