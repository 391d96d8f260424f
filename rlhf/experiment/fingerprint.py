"""The identity of a stage's result: a hash of everything that decides it and of nothing else."""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from rlhf.catalog.stage import kind_of
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key, is_neutral, keys_of, matches_prefix
from rlhf.config.metadata import Content
from rlhf.config.schema import Config
from rlhf.config.sections import config_type
from rlhf.config.sources import matching_files, show_paths
from rlhf.experiment.files import Unreadable, parse_json
from rlhf.experiment.integrity import integrity_error, known_files
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.tensor_files import header_and_spans

# Raised when the meaning of a stage's result changes without a key, so that older results are not taken for it. A new key
# does not raise it: it has a neutral value (rlhf/config/metadata.py). CHANGELOG.md says what each version means.
SCHEMA_VERSION = 5

# The files that were hashed in this context, with what was found.
HASHED: ContextVar[dict[Path, tuple[str, int, bytes]] | None] = ContextVar("HASHED", default=None)

# The endings of what is a file and no other name, of keys that hold either.
FILES: dict[Content, str] = {"prompts": ".jsonl", "tasks": ".yaml"}
# How values are written that later releases may write in another way: a share was of the rows before keys said of which,
# and passes were whole numbers before parts of a pass counted.
WRITTEN: dict[Content | None, Callable[[Any], Any]] = {
    "share": lambda share: f"{share} of the prompts",
    "passes": lambda passes: int(passes) if passes == int(passes) else passes,
}

MIB = 2**20
BLOCK = 2**14


def fingerprint(config: Config, stage: str, inputs: dict[str, str]) -> str:
    """Hash all that decides a stage's result: its kind, the schema version, its keys and the identities of its input models
    (`inputs`). Returns 64 hexadecimal digits."""
    content = {"schema": SCHEMA_VERSION, "stage": stage, "config": result_config(config, stage), "inputs": inputs}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def result_config(config: Config, stage: str) -> dict[str, Any]:
    """Return the dotted keys that decide the stage's result, with their values; paths by what they hold. A key at its
    neutral value is left out, and so is one that the stage does not read with the other values."""
    schema: Any = type(config)
    known = keys_of(schema)
    return {key: identify_value(value, key, known[key].content) for key, value in decisive_values(config, stage).items()}


def decisive_values(config: Config, stage: str) -> dict[str, Any]:
    """Return the dotted keys that decide the stage's result, with their values as they were given."""
    return {key: value for key, value in read_values(config, stage).items() if not is_neutral(config, key)}


def read_values(config: Config, stage: str) -> dict[str, Any]:
    """Return the dotted keys that the stage reads, with their values as they were given: those that decide its result, and
    those at a neutral value, but none that another key switches off."""
    schema: Any = type(config)
    known, unread = keys_of(schema), kind_of(stage).unread_keys(config)
    read = [key for key in result_keys(stage, schema) if not matches_prefix(key, unread)]
    return {
        key: get_key(config, key) for key in read if not any(is_neutral(config, switch) for switch in known[key].switches)
    }


def identify_value(value: Any, key: str, content: Content | None) -> Any:
    """Return what a key's value counts as: what a path holds, a function with the source of its module, or itself."""
    if content == "function":
        return identify_function(value, key)
    if content == "records":
        return hash_records(value)
    if content in WRITTEN:
        return WRITTEN[content](value)
    if content == "mixture" and isinstance(value, dict):
        return [[name, identify_keys(member, f"{key}.{name}")] for name, member in value.items()]
    if content in FILES:
        return identify_named(value, key, FILES[content])
    is_named = content is None or (content == "template" and not value.endswith(".jinja"))
    return value if is_named else content_id(value, key)


def identify_named(value: str | list[str], key: str, ending: str) -> Any:
    """Return the hash of a file with this ending, another name as it is; of a list a list."""
    if isinstance(value, list):
        return [identify_named(name, key, ending) for name in value]
    return content_id(value, key) if value.endswith(ending) else value


def identify_function(value: str | None, key: str) -> str | None:
    """Return the dotted path of a function with a hash of its source; a value that is no dotted path as it is."""
    if value is None or ":" not in value:
        return value
    origin, _, name = value.rpartition(":")
    return f"{name if origin.endswith('.py') else value} {hash_source(value, key)}"


def identify_keys(group: Any, prefix: str) -> dict[str, Any]:
    """Return the keys of a group that decide a result, with what their values count as; without those at their neutral
    values."""
    known = {name: key for name, key in keys_of(type(group)).items() if key.effect == "result"}
    return {
        name: identify_value(get_key(group, name), f"{prefix}.{name}", key.content)
        for name, key in known.items()
        if not is_neutral(group, name)
    }


def hash_source(path: str, key: str) -> str:
    """Return the hash of the source that defines a function, `package.module:name` or `file.py:name`, without importing it.
    Raises ConfigError where there is no such module or file."""
    origin = path.rpartition(":")[0]
    if origin.endswith(".py"):
        try:
            return hashlib.sha256(Path(origin).expanduser().read_bytes()).hexdigest()
        except OSError as error:
            fix = "give a function as path/file.py:name, the path from where the command is typed"
            raise ConfigError(key, path, "there is no such file", fix) from error
    try:
        spec = importlib.util.find_spec(origin)
        if spec is None or spec.origin is None:
            raise ImportError("there is no such module")
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except (ImportError, ValueError, OSError) as error:
        fix = "give a function as package.module:name, in a module that Python finds"
        raise ConfigError(key, path, f"it cannot be imported ({error})", fix) from error


@cache
def result_keys(stage: str, schema: Any = None) -> tuple[str, ...]:
    """Return the dotted keys that decide the stage's result: of those that it reads, a benchmark's are all that are no
    names. `schema` is the configuration's type, which has its rewards."""
    kind = kind_of(stage)
    effects = {"result", "input", "speed"} if kind.is_benchmark else {"result"}
    known = keys_of(schema or config_type([stage]))
    return tuple(name for name, key in known.items() if key.effect in effects and matches_prefix(name, kind.result_keys))


def content_id(path: str | None, key: str = "path") -> str | None:
    """Return what a model's path stands for: a stage's fingerprint, a hash of the files there, or, for a hub id, the id.

    Raises ConfigError, naming the `key` whose value it is, for a model that is not what the stage there saved.
    """
    if path is None:
        return None
    location = Path(path).expanduser()
    if not location.exists():
        return path
    if location.is_dir():
        for stage in (location, location.parent if location.name in ("model", "data") else location):
            known = stated_fingerprint(stage, path, key)
            if known is not None:
                check_unchanged(stage / "model", path, key)
                check_unchanged(stage / "data", path, key)
                return known
        check_unchanged(location, path, key)
    if location.is_file():
        return hash_files([file_digest(location.absolute())])
    digest = hashlib.sha256()
    for file in sorted(p for p in location.rglob("*") if p.is_file()):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode() + sample(file))
    if (base := base_of_adapters(location)) is not None:
        digest.update(str(content_id(base, key)).encode())
    return digest.hexdigest()


def hash_records(paths: str | list[str] | None) -> str | list[str] | None:
    """Return what paths of records stand for: a hash of all that the files hold, since one changed record is another data
    set; where there are no such files, what `content_id` says."""
    if matched := matching_files(paths or []):
        return hash_files(file_digest(file.absolute()) for file in matched)
    return paths if isinstance(paths, list) else content_id(paths)


def hash_files(files: Iterable[tuple[str, int, bytes]]) -> str:
    """Return what files of records count as in a fingerprint: a hash of their names, sizes and the SHA-256 of each."""
    digest = hashlib.sha256()
    for name, size, content in files:
        digest.update(f"{name}:{size}:".encode() + content)
    return digest.hexdigest()


@contextmanager
def remember_files() -> Iterator[None]:
    """Within this context each file of records is hashed once, for all points of a command. Whoever reads the file
    hashes it again (rlhf/data/files.py), so that no edit goes unseen."""
    token = HASHED.set({})
    try:
        yield
    finally:
        HASHED.reset(token)


def file_digest(file: Path) -> tuple[str, int, bytes]:
    """Return a file's name, size and SHA-256."""
    known = HASHED.get()
    if known is not None and file in known:
        return known[file]
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").digest()
        found = file.name, stream.tell(), content
    if known is not None:
        known[file] = found
    return found


def data_files(config: Config, stage: str) -> dict[str, str]:
    """Return the files of records, texts and functions that decide a stage's result, by their keys, with the hashes in its
    fingerprint."""
    schema: Any = type(config)
    read = () if kind_of(stage).is_benchmark else result_keys(stage, schema)
    named = [entry for key in read if not is_neutral(config, key) for entry in name_contents(config, key)]
    return {
        key: str(identify_value(value, key, content))
        for key, value, content in named
        if value is not None and (content == "records" or (content == "function" and ":" in value))
    }


def name_contents(config: Config, key: str) -> Iterator[tuple[str, Any, Content | None]]:
    """Yield a key with its value and what that counts as; of a mixture the keys of its sets."""
    schema: Any = type(config)
    content, value = keys_of(schema)[key].content, get_key(config, key)
    if content == "mixture" and isinstance(value, dict):
        for name, member in value.items():
            known = keys_of(type(member))
            yield from ((f"{key}.{name}.{own}", get_key(member, own), entry.content) for own, entry in known.items())
    else:
        yield key, value, content


def check_data_files(config: Config, hashes: dict[str, str]) -> None:
    """Raise ConfigError for a file of records, texts or functions that is no longer what a stage's fingerprint says."""
    HASHED.set(None)
    schema: Any = type(config)
    for key, value, content in (entry for name in keys_of(schema) for entry in name_contents(config, name)):
        if key in hashes and (found := str(identify_value(value, key, content))) != hashes[key]:
            raise changed_file(key, show_paths(value), hashes[key], found)


def changed_file(key: str, value: Any, planned: str, found: str) -> ConfigError:
    """Return the error of a file that is not what a stage's fingerprint says, with both hashes."""
    problem = f"it has changed since this stage was planned: its hash was {planned[:16]}, and is {found[:16]}"
    return ConfigError(key, value, problem, "restore the file, or begin anew with the new one")


def base_of_adapters(path: Path) -> str | None:
    """Return the directory that PEFT's adapters at `path` name as the model that they belong to, if they name one."""
    try:
        named = parse_json((path / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return named if isinstance(named, str) and Path(named).is_dir() and Path(named) != path else None


def stated_fingerprint(stage: Path, path: str, key: str) -> str | None:
    """Return the fingerprint that a stage's directory states, if it states one; `path` is what the user gave as `key`."""
    try:
        known = (StageDirectory(stage).read_result() or {}).get("fingerprint")
    except Unreadable as error:
        fix = "remove the directory, and train the stage again"
        raise ConfigError(key, path, f"in {stage}: {error}", fix) from error
    return None if known is None else str(known)


def check_unchanged(model: Path, path: str, key: str) -> None:
    """Refuse a model that a stage has saved and that was changed since, as far as a second tells; else the result would
    count as that of the model that it was."""
    try:
        problem = None if known_files(model) is None else integrity_error(model)
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        fix = "copy it again from where it was trained, or, if the change is wanted, give a copy of the model elsewhere"
        raise ConfigError(key, path, problem, fix)


def sample(file: Path) -> bytes:
    """Return a file's content; of a large one enough to tell two models apart without reading gigabytes: the ends and
    blocks of every tensor of a safetensors file, since two models may differ in one small tensor, as a head; else 256
    blocks spread over it."""
    size = file.stat().st_size
    if size <= 64 * MIB:
        return file.read_bytes()
    spans = [(0, size, 256)]
    if file.suffix == ".safetensors":
        with contextlib.suppress(ValueError):  # it is none, which whoever loads it will say
            spans = [(begin, end, 4) for begin, end in header_and_spans(file)]
    with file.open("rb") as stream:
        return b"".join(part for span in spans for part in blocks(stream, *span))


def blocks(stream: BinaryIO, begin: int, end: int, count: int) -> Iterator[bytes]:
    """Yield blocks of a file's bytes from `begin` to `end`, spread evenly; all of them if they are no more than `count`
    blocks."""
    if end - begin <= count * BLOCK:
        stream.seek(begin)
        yield stream.read(end - begin)
        return
    for block in range(count):
        stream.seek(begin + block * (end - begin - BLOCK) // (count - 1))
        yield stream.read(BLOCK)


def code_hash() -> str:
    """Return a hash of the package's source, so that a worker can tell whether it is the code that launched it."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()
