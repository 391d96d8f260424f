"""The identity of a stage's result: a hash of everything that decides it and of nothing else."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.keys import RESULT_KEYS, SCHEMA_VERSION, covered, leaf_keys, left_out
from rlhf.config.ranges import at
from rlhf.config.schema import Config

MIB = 2**20
BLOCK = 2**14


def fingerprint(config: Config, stage: str, inputs: dict[str, str]) -> str:
    """64 hexadecimal digits; `inputs` are the identities of the stage's input models."""
    content = {"schema": SCHEMA_VERSION, "stage": stage, "config": deciding(config, stage), "inputs": inputs}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def deciding(config: Config, stage: str) -> dict[str, Any]:
    """The dotted keys that decide the stage's result, with their values; paths by what they hold."""
    keys = [k for k in leaf_keys() if covered(k, RESULT_KEYS[stage]) and not covered(k, left_out(stage))]
    chosen = {key: at(config, key) for key in keys}
    for key, value in chosen.items():
        if key.endswith(".path") or key.startswith("data.files.") or key == "ppo.ptx.file":
            chosen[key] = identity(value)
    return chosen


def identity(path: str | None) -> str | None:
    """What a path stands for: a stage's fingerprint, a hash of the files there, or, for a hub id, the id."""
    if path is None:
        return None
    place = Path(path).expanduser()
    if not place.exists():
        return path
    for stage in (place, place.parent if place.name == "model" else place):
        if place.is_dir() and (stage / "result.json").is_file():
            try:
                known = json.loads((stage / "result.json").read_text()).get("fingerprint")
            except (ValueError, AttributeError) as error:
                problem = f"{stage / 'result.json'} cannot be read ({error})"
                raise ConfigError("path", path, problem, "remove the directory, and train the stage again") from error
            if known is not None:
                return str(known)
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        if place.is_file():  # data: one changed record is another data set
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            digest.update(sample(file))
    return digest.hexdigest()


def sample(file: Path) -> bytes:
    """A file's content, or of a large one 256 blocks spread over it: enough to tell two trained models apart, which
    differ everywhere, without reading gigabytes."""
    size, blocks = file.stat().st_size, 256
    if size <= 64 * MIB:
        return file.read_bytes()
    with file.open("rb") as stream:
        parts = []
        for block in range(blocks):
            stream.seek(block * (size - BLOCK) // (blocks - 1))
            parts.append(stream.read(BLOCK))
        return b"".join(parts)


def code_hash() -> str:
    """A hash of the package's source, so that a worker can tell whether it is the code that launched it."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()
