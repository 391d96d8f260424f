"""What a path or hub id that a command names is: a run, a sweep, a stage, or a model by itself. No torch."""

from dataclasses import dataclass
from pathlib import Path

from rlhf.catalog.stage import is_stage, order_stages
from rlhf.config.errors import ConfigError
from rlhf.experiment.directories import read_summary
from rlhf.experiment.files import as_mapping
from rlhf.experiment.stage_directory import StageDirectory

# What only a path begins with, and no hub id.
PATHS = ("/", "./", "../", "~", "outputs/")


@dataclass(frozen=True)
class Location:
    """What a command names.

    Attributes:
        given: The path or hub id as it was typed.
        path: The path; None where it is none here, and so a hub id.
        stage: The directory of the stage that it is, or in whose directory it lies; None where no stage made it.
        runs: The run that it is, or the runs or points that it holds.
    """

    given: str
    path: Path | None = None
    stage: StageDirectory | None = None
    runs: tuple[Path, ...] = ()

    @property
    def is_run(self) -> bool:
        """Whether it is one run, or one point of a sweep."""
        return self.runs == (self.path,)


def locate(given: str, key: str) -> Location:
    """Return what a path or hub id is; `key` names it in errors. Raises ConfigError for a path that is not there."""
    path = Path(given).expanduser()
    if not path.exists():
        if given.startswith(PATHS):
            raise ConfigError(key, given, "there is no such directory", "give a run, a sweep, a stage or a model")
        return Location(given)
    if read_summary(path) is not None:
        return Location(given, path, runs=(path,))
    for stage in map(StageDirectory, (path, path.parent)):
        if stage.spec_file.is_file():
            return Location(given, path, stage)
    children = sorted(child for child in path.iterdir() if not child.is_symlink()) if path.is_dir() else []
    return Location(given, path, runs=tuple(run for run in children if read_summary(run) is not None))


def list_stages(run: Path) -> list[StageDirectory]:
    """Return the directories of a run's stages, in the order of a pipeline, the further members of an ensemble too: where
    the run's links lead, if the output directory was moved. Stages of packages that are not here are left out."""
    summary = read_summary(run) or {}
    entries = [*as_mapping(summary.get("stages")).values(), *as_mapping(summary.get("members")).values()]
    found: dict[str, StageDirectory] = {}
    for directory in (Path(str(as_mapping(entry).get("directory"))) for entry in entries):
        linked = run / "stages" / directory.name
        found.setdefault(directory.name, StageDirectory(linked.resolve() if linked.exists() else directory))
    known = [stage for stage in found.values() if is_stage(stage.stage)]
    order = order_stages(stage.stage for stage in known)
    return sorted(known, key=lambda stage: order.index(stage.stage))
