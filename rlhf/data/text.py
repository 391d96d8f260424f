"""Plain text for PPO's pre-training loss, from a file or the hub."""

from collections.abc import Iterable

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Text
from rlhf.data.files import FORMATS, Origin, Row, read_files, text_of
from rlhf.data.hub import load_split


def load_texts(ptx: Text) -> list[str]:
    """Return the texts of the file or hub data set that `ppo.ptx` names. Raises ConfigError for what cannot be read."""
    if ptx.source == "file":
        origin, formats = Origin("ppo.ptx.file", str(ptx.file)), (".txt", *FORMATS)
        rows: Iterable[Row] = (row for _, row in read_files(origin, str(ptx.file), formats))
    else:
        origin = Origin("ppo.ptx.hub", str(ptx.hub))
        rows = enumerate(load_split(str(ptx.hub), ptx.config, ptx.split, ptx.revision, "ppo.ptx.hub"), 1)
    texts: list[str] = []
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row[1])
        if text := text_of(origin, row, ptx.column):
            texts.append(text)
    if not found:
        raise origin.error("it cannot be read (it is empty)")
    if ptx.column not in found:
        fix = f"choose among {', '.join(found)}"
        raise ConfigError("ppo.ptx.column", ptx.column, f"{origin.value} has no such column", fix)
    return texts
