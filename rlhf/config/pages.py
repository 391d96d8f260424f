"""Pages: what all of them begin with, base.html, and their colours, colours.css; each room has a style.css of its own."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def make_environment(directory: Path) -> Environment:
    """Return where the templates of a directory, and what all pages share, are found, and how they are filled in."""
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader([directory, Path(__file__).parent]), autoescape=True, **options)
