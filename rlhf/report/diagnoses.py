"""The diagnoses of reward models: those of stages, and those that `python -m rlhf evaluate-reward` has left beside them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.evaluation.reward import FILE
from rlhf.experiment.files import DAMAGE, Unreadable, read_object
from rlhf.report.collect import Collection

if TYPE_CHECKING:
    from rlhf.evaluation.reward.diagnosis import Diagnosis


@dataclass(frozen=True)
class Diagnosed:
    """A reward model with its diagnosis, and the directory that holds it; `others` are older diagnoses of the model."""

    model: str
    diagnosis: "Diagnosis"
    directory: Path
    others: int = 0


def find_diagnoses(collection: Collection) -> list[Diagnosed]:
    """Return the diagnoses of a collection's reward models: of each stage that made them, then the newest of each other
    model that was diagnosed by itself."""
    found = []
    for stage in (stage for stage in collection.stages if stage.state == "done" and (stage.path / FILE).is_file()):
        found += [Diagnosed(name, own, stage.path) for name, own in read_directory(stage.path)]
    known = {one.model for one in found}
    names = {stage.name for stage in collection.stages} - known
    beside: dict[str, list[Diagnosed]] = {}
    for directory in list_beside(collection):
        for name, own in read_directory(directory):
            if name in names:
                beside.setdefault(name, []).append(Diagnosed(name, own, directory))
    for entries in beside.values():
        newest = entries[-1]
        found.append(Diagnosed(newest.model, newest.diagnosis, newest.directory, len(entries) - 1))
    return found


def list_beside(collection: Collection) -> list[Path]:
    """Return the directories of evaluations of reward models beside a collection's stages, the oldest first."""
    roots = {stage.path.parent.parent / "evaluations" for stage in collection.stages}
    found = [directory for root in roots for directory in root.glob("reward-*")]
    return sorted(found, key=lambda directory: (directory.stat().st_mtime, str(directory)))


def read_directory(directory: Path) -> Iterator[tuple[str, "Diagnosis"]]:
    """Yield the diagnoses that a directory holds, by the names of their models; those that are damaged are left out."""
    from rlhf.evaluation.reward.diagnosis import Diagnosis  # which most reports do without

    try:
        stored = (read_object(directory / FILE) or {}).get("diagnoses")
    except Unreadable:
        return
    for name, own in stored.items() if isinstance(stored, dict) else ():
        try:
            yield name, Diagnosis.from_json(own)
        except (*DAMAGE, TypeError, KeyError, AttributeError):
            continue
