"""From which model another one was trained, and by which stages, as the directories of the stages say."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.experiment.files import Unreadable, as_float, as_mapping, parse_json
from rlhf.experiment.stage_directory import StageDirectory

# The names under which stages know the policy that they train, among their inputs.
STARTS = ("actor", "policy")
# The keys of a data set of the hub that only say something of it.
NOTES = ("licence", "train_rows", "heldout_rows")
# Where the data sets of the Hugging Face hub are, by their ids.
HUB = "https://huggingface.co/datasets/"
# The code that makes the demo's.
DEMO = Path(__file__).resolve().parents[1] / "data" / "demo.py"


@dataclass(frozen=True)
class Maker:
    """A stage that made a model or a data set.

    Attributes:
        stage: Its kind.
        fingerprint: Its identity.
        directory: Its directory.
        config: Its configuration, as its spec holds it.
        inputs: The directories or hub ids that it started from, by name.
        files: The hashes of the files that it read, by their keys.
        seconds: Its wall time; None where that is not known.
    """

    stage: str
    fingerprint: str
    directory: Path
    config: dict[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    seconds: float | None = None

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.stage}-{self.fingerprint[:12]}"

    def key(self, name: str) -> Any:
        """Return the value at a dotted key of its configuration; None where there is none, as in another release's."""
        value: Any = self.config
        for part in name.split("."):
            value = as_mapping(value).get(part)
        return value


@dataclass(frozen=True)
class DataSet:
    """A data set that a stage read.

    Attributes:
        name: Its id on the hub, the name of its file, or `demo`.
        reference: Where it is, as a URI, or the code that makes it.
        version: A hash of what tells one version of it from another.
        licence: Its licence where that is known.
    """

    name: str
    reference: str
    version: str
    licence: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether it is one of the Hugging Face hub's."""
        return self.reference.startswith(HUB)


def make_maker(spec: Mapping[str, Any], seconds: float | None = None) -> Maker:
    """Return a stage by the values of its spec. Raises KeyError or TypeError for what is none."""
    known = {name: spec[name] for name in ("stage", "fingerprint", "config", "inputs")}
    return Maker(**known, files=spec.get("files", {}), directory=Path(spec["directory"]), seconds=seconds)


def read_maker(path: str) -> Maker | None:
    """Return the stage whose model or data set is in this directory; None of a hub id, and of what no stage made."""
    directory = StageDirectory(Path(path).expanduser().parent)
    try:
        spec = parse_json(directory.spec_file.read_text())
        seconds = as_float((directory.read_result() or {}).get("seconds"))
        return make_maker(spec | {"directory": directory.path}, seconds)
    except (OSError, ValueError, KeyError, TypeError, Unreadable):
        return None


def list_makers(paths: Iterable[str]) -> list[Maker]:
    """Return the stages that made some models and data sets, and what these were made of: each once, in the order in which
    they ran."""
    found: dict[str, Maker] = {}
    for maker in filter(None, map(read_maker, paths)):
        found |= {earlier.name: earlier for earlier in (*list_makers(maker.inputs.values()), maker)}
    return list(found.values())


def list_data_sets(maker: Maker) -> list[DataSet]:
    """Return the data sets that a stage read, beside those that other stages made."""
    groups = [f"data.mix.{name}" for name in as_mapping(maker.key("data.mix"))]
    found = []
    for group in groups if maker.key("data.source") == "mixture" else ["data"]:
        source, hub = maker.key(f"{group}.source"), as_mapping(maker.key(f"{group}.hub"))
        if source == "hub":
            version = hash_version({key: value for key, value in hub.items() if key not in NOTES})
            found.append(DataSet(str(hub.get("name")), f"{HUB}{hub.get('name')}", version, hub.get("licence")))
        elif source == "files":
            paths, version = maker.key(f"{group}.files.train"), hash_version(maker.files.get(f"{group}.files.train"))
            for path in paths if isinstance(paths, list) else [paths]:
                found.append(DataSet(Path(str(path)).name, Path(str(path)).expanduser().absolute().as_uri(), version))
        else:
            version = hash_version([maker.key("data.demo"), maker.key("seed")])
            found.append(DataSet("demo", DEMO.as_uri(), version, "this package's"))
    texts = maker.key("ppo.ptx.hub") if maker.key("ppo.ptx.source") == "hub" else None
    if texts is not None and kind_of(maker.stage).samples_responses and maker.key("ppo.ptx_coef"):
        found.append(DataSet(str(texts), f"{HUB}{texts}", hash_version(maker.key("ppo.ptx"))))
    return found


def hash_version(values: Any) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def find_base(maker: Maker, starts: tuple[str, ...] = STARTS) -> dict[str, Any]:
    """Return the model that training began with, before the stage and those that made what it started from: `path`, null
    for random weights, `revision`, and the `name` of its shape. `starts` are the names of the input that the model was."""
    kind = kind_of(maker.stage)
    first = (given.name for given in kind.inputs[:1] if kind.loads is None)
    start = next((maker.inputs[name] for name in (*starts, *first) if name in maker.inputs), None)
    if start is None:
        return {name: maker.key(f"{kind.loads or 'model'}.{name}") for name in ("path", "revision", "name")}
    before = read_maker(start)
    return {"path": start, "revision": None, "name": start} if before is None else find_base(before)


def find_again(start: str, directory: Path) -> str | None:
    """Return where a model is now that a stage started from, in its `directory`: where it was, or, of an output directory
    that was moved, beside it; a hub id as it is."""
    path = Path(start).expanduser()
    beside = directory.parent / path.parent.name / path.name
    there = next((found for found in (path, beside) if found.is_dir()), None)
    if there is not None:
        return str(there)
    return None if path.is_absolute() or path.name == "model" else start


def trained_from(model: str) -> str | None:
    """Return the model that a policy was trained from: of a stage's directory, or of the model in it, what the stage
    started from. None of any other model, and of one whose start is no longer there."""
    path = Path(model).expanduser()
    for directory in (path, path.parent):
        file = StageDirectory(directory).spec_file
        if file.is_file():
            try:
                inputs = parse_json(file.read_text())["inputs"]
            except (OSError, ValueError, KeyError, TypeError):
                return None
            start = next((inputs[name] for name in STARTS if name in inputs), None)
            return None if start is None else find_again(start, directory)
    return None
