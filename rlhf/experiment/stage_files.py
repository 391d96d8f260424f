"""The files of a stage's directory as others read them: any may be missing, cut off or damaged, or of another version."""

from pathlib import Path

from rlhf.catalog.display import DISPLAY_FILE, Display, display_of, from_json, is_in_package
from rlhf.catalog.metric import SPEED
from rlhf.experiment.files import Unreadable, read_object

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
