"""The sets of rows that a configuration reads, its one data set or the members of its mixture, and the files that hold
them."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data, Member

# The names of the columns of records, which `columns` has where nothing is renamed.
OWN_COLUMNS = {name: name for name in ("prompt", "response", "chosen", "rejected")}


@dataclass(frozen=True)
class Source:
    """A set of rows.

    Attributes:
        keys: The keys of the set: those of `data`, or of a member of `data.mix`.
        group: The dotted name of these keys.
        name: The name of the member; "" where the set is all there is.
    """

    keys: Data | Member
    group: str = "data"
    name: str = ""

    @property
    def weight(self) -> float | None:
        """The weight of a set of a mixture."""
        return self.keys.weight if isinstance(self.keys, Member) else None

    @property
    def records(self) -> int | None:
        """The number of records that a mixture takes of the set."""
        return self.keys.records if isinstance(self.keys, Member) else None

    @property
    def is_cut(self) -> bool:
        """Whether the held-out part is a share of the training rows."""
        return self.keys.heldout_fraction is not None

    @property
    def is_on_hub(self) -> bool:
        """Whether the rows are on the Hugging Face hub."""
        return self.keys.source == "hub"

    def has_part(self, part: str) -> bool:
        """Whether the set has rows of the training part (`train`) or of the held-out part (`heldout`)."""
        named = self.keys.hub.heldout_split if self.is_on_hub else self.keys.files.heldout
        return part == "train" or self.is_cut or named is not None

    def paths(self, part: str) -> str | list[str]:
        """Return the paths of the files that hold a part."""
        paths: str | list[str] = self.keys.files.train if self.is_cut or part == "train" else self.keys.files.heldout
        return paths

    def split(self, part: str) -> str:
        """Return the split of the hub that holds a part."""
        return str(self.keys.hub.train_split if self.is_cut or part == "train" else self.keys.hub.heldout_split)

    def splits(self) -> list[str]:
        """Return the splits of the hub that are read."""
        return list(dict.fromkeys(self.split(part) for part in ("train", "heldout") if self.has_part(part)))

    def key(self, part: str) -> str:
        """Return the key that says where a part is."""
        if self.is_on_hub:
            return f"{self.group}.hub.name"
        return f"{self.group}.files.{'train' if self.is_cut or part == 'train' else 'heldout'}"

    def describe(self, part: str) -> str:
        """Return where a part is: the paths as they are typed, or the id of the hub with the split."""
        return f"{self.keys.hub.name} ({self.split(part)})" if self.is_on_hub else show_paths(self.paths(part))


def list_sources(data: Data) -> list[Source]:
    """Return the sets of rows that a data set is of; none where it is made by code."""
    if data.source == "mixture":
        return [Source(member, f"data.mix.{name}", name) for name, member in (data.mix or {}).items()]
    return [] if data.source == "demo" else [Source(data)]


def reads_hub(data: Data) -> bool:
    """Whether rows of a data set are on the Hugging Face hub."""
    return any(source.is_on_hub for source in list_sources(data))


def is_split(data: Data) -> bool:
    """Whether stages train on shares of the data set, each on its own."""
    return data.split is not None or any(source.keys.split is not None for source in list_sources(data))


def check_sources(data: Data) -> Iterator[ConfigError]:
    """Check that the rows that are named are there, each named once, and nothing is named that is not read."""
    if data.source == "mixture":
        yield from check_mixture(data)
    if data.source in ("demo", "mixture"):
        yield from check_unread_keys(data)
    for source in list_sources(data):
        yield from check_source(source)
    if data.share is not None and not is_split(data):
        yield ConfigError("data.share", data.share, "the data set is not split", "set data.split, or leave it out")


def check_unread_keys(data: Data) -> Iterator[ConfigError]:
    """Check that a data set that is made by code or of several sets has no keys of one set."""
    fixes = {
        "demo": "set data=files or data=hub, or leave it out",
        "mixture": "set it of a set, as data.mix.NAME.{key}=..., or leave it out",
    }
    found = {
        "converter": data.converter != "auto",
        "heldout_fraction": data.heldout_fraction is not None,
        "columns": asdict(data.columns) != OWN_COLUMNS,
        "split": data.source == "demo" and data.split is not None,
    }
    for key in (key for key, is_set in found.items() if is_set):
        fix = fixes[data.source].format(key=key)
        if data.source == "demo" and key == "heldout_fraction":
            fix = "set data.demo.heldout_prompts, or leave it out"
        yield ConfigError(f"data.{key}", getattr(data, key), f"data.source={data.source} does not read it", fix)


def check_mixture(data: Data) -> Iterator[ConfigError]:
    """Check that a mixture has sets, that all or none of them have weights or counts, and that something is held out."""
    sources = list_sources(data)
    if not sources:
        fix = "give some, as 'data.mix={hh-rlhf: 0.7, ultrafeedback: 0.3}' or data.mix=[hh-rlhf,ultrafeedback]"
        yield ConfigError("data.mix", None, "data=mixture needs data sets", fix)
        return
    weighted = {key: [getattr(source, key) is not None for source in sources] for key in ("weight", "records")}
    shown = ",".join(source.name for source in sources)
    if (any(map(any, weighted.values())) and sum(map(all, weighted.values())) != 1) or all(map(any, weighted.values())):
        problem = "some of its sets have a weight or a number of records, others have not, or have the other"
        yield ConfigError("data.mix", shown, problem, "give all a weight, or all `records`, or none of them either")
    if data.stopping_strategy != "first_exhausted" and not any(weighted["weight"]):
        problem = "the sets have no weights, by which one could be exhausted before another"
        yield ConfigError("data.stopping_strategy", data.stopping_strategy, problem, "give weights, or leave it out")
    if not any(source.has_part("heldout") for source in sources):
        fix = "name files.heldout or hub.heldout_split of a set, or its heldout_fraction"
        yield ConfigError("data.mix", shown, "none of its sets has held-out records", fix)


def check_source(source: Source) -> Iterator[ConfigError]:
    """Check that the files of a set are there, and the parts of a set of the hub named."""
    keys, group = source.keys, source.group
    if keys.source == "hub":
        if keys.hub.name is None:
            fix = f"give one, as {group}.hub.name=Dahoas/rm-static"
            yield ConfigError(f"{group}.hub.name", "null", f"{group}.source=hub needs a data set", fix)
        if not source.has_part("heldout") and not source.name:
            fix = "name a split, or set data.heldout_fraction"
            yield ConfigError("data.hub.heldout_split", None, "no records are held out", fix)
        return
    yield from check_files(f"{group}.files.train", keys.files.train)
    if keys.heldout_fraction is not None and keys.files.heldout is not None:
        problem = "the held-out records are a file of their own"
        yield ConfigError(f"{group}.heldout_fraction", keys.heldout_fraction, problem, "leave out one of the two")
    elif keys.files.heldout is not None or not (source.is_cut or source.name):
        yield from check_files(f"{group}.files.heldout", keys.files.heldout)


def check_files(key: str, paths: str | list[str] | None) -> Iterator[ConfigError]:
    """Check that each path of records names files, and no two of them one file."""
    named: list[str | None] = [*list_paths(paths)]
    for path in named or [None]:
        if path is None or not find_files(path):
            yield ConfigError(key, path, *describe_no_files(path))
    found = Counter(file.resolve() for file in matching_files(paths or []))
    for file in [file for file, times in found.items() if times > 1][:1]:
        yield ConfigError(key, show_paths(paths), f"{file} is named twice", "name each file once")


def describe_no_files(path: str | None) -> tuple[str, str]:
    """Return why a path names no file of records, and what to give instead."""
    directory = None if path is None else Path(path).expanduser()
    if directory is None or not directory.is_dir():
        fix = "give a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or a pattern that matches some"
        return "there is no such file", fix
    splits = read_json(directory / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits:
        return f"it holds the splits {', '.join(map(str, splits))}", f"give one of them, as {path}/{splits[0]}"
    return "it is a directory that no data set was saved to", f"give the files in it by a pattern, as {path}/*.jsonl"


def list_paths(paths: str | list[str] | None) -> list[str]:
    """Return the paths that a key of records holds: one, several or none."""
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def show_paths(paths: str | list[str] | None) -> str:
    """Return the paths that a key of records holds as they are typed."""
    return f"[{','.join(paths)}]" if isinstance(paths, list) else str(paths)


def matching_files(paths: str | list[str]) -> list[Path]:
    """Return the files that paths of records name, path by path (see `find_files`)."""
    return [file for path in list_paths(paths) for file in find_files(path)]


def find_files(path: str) -> list[Path]:
    """Return the file of this name, whatever characters it holds; or the Arrow files of a directory that a data set was
    saved to (`Dataset.save_to_disk`); or else the files that match it as a pattern (`*`, `?`, `[...]`, `**`), in the order
    of their names."""
    location = Path(path).expanduser()
    if location.is_file():
        return [location]
    if location.is_dir():
        listed = read_json(location / "state.json").get("_data_files")
        names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        return [location / name for name in names if isinstance(name, str)]
    return sorted(Path(found) for found in glob(str(location), recursive=True) if Path(found).is_file())


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a small JSON file holds; an empty one where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
