"""Which template `data.template=auto` is for a stage: chat where the tokenizer that it starts with has a chat template."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rlhf.catalog.stage import kind_of
from rlhf.config.hub import find_hub_problem
from rlhf.config.schema import Config, Model
from rlhf.experiment.files import parse_json
from rlhf.experiment.stage_directory import StageDirectory

# Where a tokenizer's chat template may stand, in a directory or on the hub.
TEMPLATE, SETTINGS, GGUF_KEY = "chat_template.jinja", "tokenizer_config.json", "tokenizer.chat_template"
# What a chat template begins with that a stage has made of data.prompt_format.
PLAIN = "{#- plain -#}"


def choose_template(config: Config, stage: str, inputs: Mapping[str, str]) -> str:
    """Return `data.template` of a stage that starts from these models (name: directory or hub id), with `auto` decided.

    A stage that starts from the model of another one has its template. A tokenizer that is trained here, and data sets
    whose texts are DeepSpeed-Chat's, have the plain one.
    """
    if config.data.template != "auto":
        return config.data.template
    kind = kind_of(stage)
    if config.data.format != "plain" or kind.is_benchmark:
        return "plain"
    start = inputs.get("actor")
    if start is not None and (known := saved_template(start)) is not None:
        return known
    model: Model = getattr(config, kind.loads or next(iter(kind.model_keys), "model"))
    if start is not None and Path(config.output_root) not in Path(start).parents:  # else a stage that is still to run
        model = replace(model, path=start, revision=None, gguf_file=None)
    return "chat" if brings_template(model, config.dry_run) else "plain"


def brings_template(model: Model, offline: bool) -> bool:
    """Whether the tokenizer of a model has a chat template; what is neither here nor in the cache of the hub has none as
    long as the hub is not asked (`offline`)."""
    if model.path is None:
        return False
    if model.gguf_file is not None:
        return has_gguf_template(model.path, model.gguf_file, model.revision, offline)
    return has_template(model.path, model.revision, offline)


def saved_template(model: str) -> str | None:
    """Return `data.template` of the stage that saved a model; None for a model of another origin."""
    try:
        data = parse_json(StageDirectory(Path(model).parent).spec_file.read_text())["config"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = str(data.get("template", "plain"))
    return "chat" if name.endswith(".jinja") else name


@cache
def has_template(path: str, revision: str | None, offline: bool) -> bool:
    """Whether the tokenizer in a directory or on the hub has a chat template of its own."""
    if (file := find_file(path, TEMPLATE, revision, offline)) is not None:
        return not file.read_text(encoding="utf-8", errors="replace").startswith(PLAIN)
    file = find_file(path, SETTINGS, revision, offline)
    try:
        return file is not None and bool(parse_json(file.read_text(encoding="utf-8")).get("chat_template"))
    except (ValueError, AttributeError):
        return False  # whoever loads the tokenizer will say what is wrong with it


def find_file(path: str, name: str, revision: str | None, offline: bool) -> Path | None:
    """Return a file of a model, from its directory, from the cache of the hub, or from the hub."""
    place = Path(path).expanduser()
    if place.exists():
        return place / name if (place / name).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        known = try_to_load_from_cache(path, name, revision=revision)
        if isinstance(known, str):
            return Path(known)
        if known is not None or offline or find_hub_problem(path, revision):
            return None
        return Path(hf_hub_download(path, name, revision=revision))
    except (HFValidationError, HfHubHTTPError, OSError):
        return None


@cache
def has_gguf_template(path: str, name: str, revision: str | None, offline: bool) -> bool:
    """Whether a GGUF file holds a chat template."""
    file = find_file(path, name, revision, offline)
    if file is None or find_spec("gguf") is None:
        return False  # whoever loads the model will say so
    from gguf import GGUFReader

    return GGUF_KEY in GGUFReader(file).fields
