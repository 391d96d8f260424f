"""The files of a stage's directory as others read them: any may be missing, cut off or damaged, or of another version."""

from pathlib import Path
from typing import Any

from rlhf.catalog.display import DISPLAY_FILE, Display, display_of, from_json, is_in_package
from rlhf.catalog.metric import SPEED
from rlhf.experiment.files import Unreadable, as_float, as_floats, as_int, as_mapping, read_object
from rlhf.planner.remaining import Planned

# What was planned of a stage when it was launched.
PLAN_FILE = "plan.json"

# A stage of another package that says nothing: names stand for labels.
UNKNOWN = Display({metric.name: metric for metric in SPEED})


def read_display(directory: Path, stage: str) -> Display:
    """Return how the results of a stage are shown: as this package says, or for another's stage as its directory does."""
    if is_in_package(stage):
        return display_of(stage)
    try:
        found = read_object(directory / DISPLAY_FILE)
    except Unreadable:
        found = None
    return from_json(found) if found is not None else UNKNOWN


def read_planned(directory: Path) -> Planned | None:
    """Return what was planned of a stage; None where nothing was, or its file cannot be read."""
    try:
        return parse_planned(read_object(directory / PLAN_FILE))
    except Unreadable:
        return None


def parse_planned(found: Any) -> Planned | None:
    """Return what was planned of a stage, from plan.json or from a point's summary.json; None if that holds something
    else."""
    known = as_mapping(found)
    devices, price, memory = as_int(known.get("devices")), as_float(known.get("price")), as_float(known.get("gib_per_gpu"))
    if devices is None or price is None or memory is None:
        return None
    phases, evaluations = as_floats(known.get("phases")), as_int(known.get("evaluations")) or 0
    return Planned(as_int(known.get("steps")), as_float(known.get("seconds")), phases, evaluations, memory, devices, price)
