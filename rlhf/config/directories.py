"""What the directories of runs, sweeps and points are called: readable, never two alike, and inside of output_root; and in
which directory a model is."""

import hashlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.keys import has_no_effect_but, matches_prefix

# The bytes of a name: file systems take 255, and others are put beside it.
LONGEST = 100
# The link to the newest run or sweep, beside it.
LATEST = "latest"
# The file that a stage writes last: it is done if and only if it is there.
RESULT_FILE = "result.json"
# The page of an evaluation, or of a report, in its directory.
PAGE = "report.html"
# The file that says of a data set that a stage made how it came to be.
ABOUT_DATA = "about.json"
# Overrides that leave a point what it is, beside keys that are names: where it runs, and the presets, which have names of
# their own.
INDIFFERENT = ("launcher", "sweeps", "hydra")


def find_name_problem(name: str) -> ConfigError | None:
    """Find out whether a `name` is no name of a directory: what is written stays under output_root."""
    safe = re.sub(r"^\W+|[.-]+$", "", re.sub(r"[^\w.,=+@:-]+", "-", name)) or "mine"
    problem = None
    if name == LATEST:
        problem, safe = "it is the name of the link to the newest one", "newest"
    elif not re.fullmatch(r"\w[\w.,=+@:-]*", name):
        problem = "it names directories: letters, digits and _ . , = + @ : - only, a letter or digit first"
    elif len(name.encode()) > LONGEST:
        problem, safe = f"it is longer than {LONGEST} bytes", shorten(name, 40)
    if problem is None:
        return None
    return ConfigError("name", repr(name) if name != name.strip() or not name else name, problem, f"write name={safe}")


def make_safe_name(text: str) -> str:
    """Return a directory's name for a text: the text itself, or, where characters had to be replaced or left out, with a
    hash of it, so that different texts have different names."""
    name = re.sub(r"[^\w.,=+@:-]", "_", text)
    if name == text and len(name.encode()) <= LONGEST:
        return name
    return f"{shorten(name, LONGEST - 9)}-{hash_text(text)}"


def shorten(text: str, length: int) -> str:
    """Return the beginning of a text, of so many bytes at most."""
    return text.encode()[:length].decode(errors="ignore")


def hash_text(text: str) -> str:
    """Return a short hash, as a part of a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def name_sweep(name: str, typed_in: list[str]) -> str:
    """Return a directory's name for a sweep: the name that was typed, or the preset's; else, and for a preset with other
    fixed overrides than its own, with a hash of them and of what is swept. So what is typed again finds its directory,
    with more values too, and what is another sweep has another one."""
    from rlhf.config.overrides import parse_command  # Hydra is not for who only reads directories

    parsed = parse_command(tuple(typed_in))
    if parsed is None:
        return name
    keys = [override.key_or_group for _, override in parsed]
    swept = [override.key_or_group for _, override in parsed if override.is_sweep_override()]
    fixed = result_overrides(word for word, override in parsed if not override.is_sweep_override())
    if "name" in keys or ("sweeps" in keys and not fixed):
        return name
    identity = [*sorted(fixed), *([] if "sweeps" in keys else sorted(swept))]
    return f"{name}-{hash_text(chr(10).join(identity))}"


def result_overrides(overrides: Iterable[str]) -> set[str]:
    """Those of some overrides that make a point another one."""
    keys = {word: key_of(word) for word in map(str, overrides)}
    return {
        word for word, key in keys.items() if not matches_prefix(key, INDIFFERENT) and not has_no_effect_but(key, "name")
    }


def key_of(override: str) -> str:
    """Return the key or group of an override, with dots."""
    return re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0].replace("/", ".")


def is_finished_stage(directory: Path) -> bool:
    """Whether a directory is that of a stage that is done."""
    return (directory / RESULT_FILE).is_file()


def find_input(path: str | Path, holds: str) -> Path:
    """Return the directory of a model or of a data set (`holds`): of a finished stage's directory its model/ or data/, else
    the path itself."""
    place = Path(path).expanduser()
    return place / holds if is_finished_stage(place) else place


def find_model(path: Path) -> Path:
    """Return the directory that `transformers` loads: of a finished stage's directory its model/, else the path itself."""
    return find_input(path, "model")


def draw_unique_word() -> str:
    """Draw a word that tells two runs apart which begin in the same second, on whatever machine."""
    return secrets.token_hex(3)
