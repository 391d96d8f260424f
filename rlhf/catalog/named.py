"""Parts that a key names: this package's, or somebody else's by their dotted name."""

import pkgutil
from collections.abc import Mapping
from typing import Any

from rlhf.config.errors import ConfigError, first_line


def load_named(key: str, name: str, known: Mapping[str, str], form: str) -> Any:
    """Import what a key names: one of `known`, each with its "module:name", or such a name itself, whose `form` is told.
    Raises ConfigError where there is none."""
    try:
        return pkgutil.resolve_name(known.get(name, name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(key, name, f"it cannot be imported ({first_line(error)})", advise(known, form)) from error


def advise(known: Mapping[str, str], form: str) -> str:
    """Say what such a key may name."""
    return f"choose one of {', '.join(known)}, or give {form}"
