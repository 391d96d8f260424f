"""The directories of a run or of a sweep's points, before anything is written: free, or this very point's from before."""

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

from rlhf.config.directories import LATEST, result_overrides
from rlhf.config.errors import ConfigError
from rlhf.experiment.files import Unreadable, read_object
from rlhf.experiment.sweep import Point

# What Hydra writes, in a run's or a point's directory, and in a sweep's.
HYDRAS = {".hydra", "multirun.yaml"}


def check_directories(points: list[Point]) -> None:
    """Refuse to write where something else is: files of the user, or another point, which would be gone without a word.
    Raises ConfigError."""
    root, taken = Path(points[0].config.output_root), dict[Path, Point]()
    for point in points:
        other = taken.setdefault(point.directory.resolve(), point)
        if set(other.overrides) != set(point.overrides):
            problem = f"two points would share it, one {difference(other.overrides, point.overrides)}"
            fix = "leave it as it is, or put ${hydra.job.num} into it"
            raise ConfigError("hydra.sweep.subdir", point.directory.name, problem, fix)
        check_free(point)
        key = "hydra.sweep.subdir" if point.swept else "hydra.run.dir"
        check_ours(point.directory, root, key, read_summary(point.directory) is not None)
    for sweep in dict.fromkeys(point.directory.parent for point in points if point.swept):
        holds_points = any(read_summary(path) is not None for path in sweep.glob("*"))
        check_ours(sweep, root, "hydra.sweep.dir", holds_points)


def check_free(point: Point) -> None:
    """Refuse a directory that another point has: one with other overrides. Raises ConfigError."""
    known = read_summary(point.directory)
    if known is None or result_overrides(known["overrides"]) == result_overrides(point.overrides):
        return
    differs = difference(known["overrides"], point.overrides)
    problem = f"{point.directory} is another point's, {differs}, which would be replaced"
    if point.swept:
        raise ConfigError("name", point.config.name, problem, "choose another name=..., or remove that directory")
    raise ConfigError("hydra.run.dir", point.directory, problem, "choose another directory, or remove it")


def difference(one: list[str], other: list[str]) -> str:
    """Say how a point differs from another point."""
    first, second = result_overrides(one), result_overrides(other)
    sides = [" ".join(sorted(side)) or "the defaults" for side in (first - second, second - first)]
    return f"with {sides[0]} instead of {sides[1]}"


def check_ours(directory: Path, output_root: Path, key: str, known: bool) -> None:
    """Refuse a directory of the user's choice that holds other files than this program's. Raises ConfigError."""
    homes = [output_root.resolve() / name for name in ("runs", "sweeps")]
    if known or any(home in directory.resolve().parents for home in homes) or not directory.exists():
        return
    if directory.is_dir() and {path.name for path in directory.iterdir()} <= HYDRAS:
        return
    problem = "it holds other files" if directory.is_dir() else "it is a file"
    raise ConfigError(key, directory, problem, f"leave {key} as it is, or give a new or an empty directory")


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Return a point's summary.json; None if there is none that is this program's."""
    try:
        summary = read_object(directory / "summary.json") or {}
    except Unreadable:
        return None
    ours = {"point", "overrides", "state", "stages"} <= set(summary)
    return summary if ours and isinstance(summary["overrides"], list) else None


def link_latest(points: list[Point]) -> None:
    """Have the link `latest` in outputs/runs or outputs/sweeps lead to what begins now."""
    directory = points[0].directory.parent if points[0].swept else points[0].directory
    if directory.parent.name not in ("runs", "sweeps"):
        return  # a directory of the user's choice
    temporary = directory.parent / f".{LATEST}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.symlink_to(directory.name)
        os.replace(temporary, directory.parent / LATEST)
    except OSError:  # a file system without links, or a directory of that name: nothing depends on it
        with contextlib.suppress(OSError):
            temporary.unlink()
