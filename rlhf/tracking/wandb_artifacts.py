"""W&B artifacts: what stages make and read, as references to where it lies, so that W&B shows the lineage from data to
policy. The name of an artifact is the kind of its stage, or its data set; the alias of its version is the fingerprint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from rlhf.catalog.stage import kind_of
from rlhf.experiment.lineage import Maker, find_base, list_data_sets, read_maker
from rlhf.experiment.stage_directory import StageDirectory

# What W&B refuses in the name of an artifact.
FORBIDDEN = re.compile(r"[^A-Za-z0-9_.-]+")


def describe_output(maker: Maker, upload: bool, metrics: Mapping[str, float] | None = None) -> Any:
    """Return the artifact of what a stage makes, its model or its data set; None where it makes neither. Its files are
    copied to W&B only if `upload`; the `metrics` stand in its metadata."""
    directory = StageDirectory(maker.directory)
    path = next((path for path in (directory.model, directory.data_set) if path.is_dir()), None)
    if path is None:
        return None
    kind = "model" if path == directory.model else "dataset"
    return make_artifact(
        maker.stage, kind, maker.fingerprint, path.absolute().as_uri(), metrics or {}, path if upload else None
    )


def list_inputs(maker: Maker, upload: bool) -> list[tuple[Any, str]]:
    """Return the artifacts that a stage reads, each with its version: what other stages made, models from elsewhere, and
    data sets."""
    found = []
    for path in maker.inputs.values():
        before = read_maker(path)
        if before is None:
            found.append(describe_model(path, None))
        elif (artifact := describe_output(before, upload)) is not None:
            found.append((artifact, before.fingerprint))
    kind = kind_of(maker.stage)
    if kind.loads is not None and (base := find_base(maker))["path"] is not None:
        found.append(describe_model(base["path"], base["revision"]))
    for data in () if kind.is_benchmark else list_data_sets(maker):
        artifact = make_artifact(data.name, "dataset", data.version, data.reference, {"licence": data.licence})
        found.append((artifact, data.version))
    return found


def describe_model(path: str, revision: str | None) -> tuple[Any, str]:
    """Return the artifact of a model that no stage made, from a directory or the hub, with its version."""
    local, version = Path(path).expanduser(), revision or "main"
    if local.exists():
        return make_artifact(local.name, "model", version, local.absolute().as_uri(), {}), version
    return make_artifact(path, "model", version, f"https://huggingface.co/{path}", {}), version


def make_artifact(
    name: str, kind: str, version: str, uri: str, metadata: Mapping[str, Any], upload: Path | None = None
) -> Any:
    """Return an artifact that refers to a URI, which is not read, or that holds the files of a directory (`upload`). Two
    artifacts of one name and version are the same to W&B, whichever run describes them: it goes by what they hold, and the
    version is part of the references' names."""
    import wandb

    artifact = wandb.Artifact(FORBIDDEN.sub("-", name)[:128], kind, metadata={**metadata, "version": version, "uri": uri})
    if upload is not None:
        artifact.add_dir(str(upload.absolute()), policy="immutable")
    elif uri.startswith("file:") and not Path(url2pathname(urlparse(uri).path)).exists():  # a pattern of several files
        with artifact.new_file("version.txt") as file:
            file.write(f"{version} {uri}\n")
    else:
        artifact.add_reference(uri, name=version[:12], checksum=False)
    return artifact
