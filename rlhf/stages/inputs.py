"""Comparing the models that a stage starts from with what the stages that made them noted, before any weight is used."""

from pathlib import Path
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.directories import is_finished_stage
from rlhf.config.errors import ConfigError
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.integrity import differing_files, known_files
from rlhf.experiment.spec import Spec
from rlhf.models.adapters import adapter_base
from rlhf.models.source import Source
from rlhf.runtime.distributed import gather, is_main, rank, world


def models_of(spec: Spec) -> list[tuple[str, str]]:
    """Return the models that a stage starts from, those that adapters belong to among them, each with the key of the
    configuration that names it or would."""
    kind = kind_of(spec.stage)
    used = [given for given in kind.find_inputs(spec.config) if given.name in spec.inputs]
    found = [(given.key, spec.inputs[given.name]) for given in used]
    path = None if kind.loads is None else getattr(spec.config, kind.loads).path
    if path is not None:
        found.append((f"{kind.loads}.path", path))
    bases = [(key, adapter_base(Source(path, key))) for key, path in found]
    return found + [(key, base.path) for key, base in bases if base is not None]


def verify_inputs(spec: Spec) -> None:
    """Compare every file of the models that a stage starts from with the checksums of the stage that saved it; each rank
    reads some of them. All ranks must call this. Raises ConfigError for a model that has changed since.

    A model that no stage has saved is not looked at: nothing is known of it.
    """
    for key, path in models_of(spec):
        model = Path(path).expanduser()
        if not model.is_dir():
            continue
        known, problem = None, None
        try:
            known = known_files(model)
            if known is not None:
                share = sorted(known, key=lambda name: -known[name][0])[rank() :: world()]
                problem = differing_files(model, known, share, share)
        except (OSError, ValueError) as error:
            problem = str(error)
        if known is None and problem is None and is_main() and is_finished_stage(model.parent):
            print(f"{model} has no checksums: only the form of its files was looked at", flush=True)
        problem = next((found for found in gather(problem) if found), None)
        if problem is not None:
            fix = "copy it again from where it was trained, or remove the stage's directory to train it again"
            raise ConfigError(key, path, problem, fix)


def identify_model(model: str, key: str) -> list[Any]:
    """Return what tells a model, a directory or hub id given by a key, from any other: what it counts as in a fingerprint,
    and, of a stage that may have been trained anew since, the checksums of its files."""
    path = Path(model).expanduser()
    return [content_id(model, key), known_files(path) if path.is_dir() else None]
