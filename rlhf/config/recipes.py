"""The options that follow the model, as Hydra asks for them: `${rlhf_recipe:${model},GROUP}` in the defaults list."""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.catalog.recipe import DEMO, ModelFacts, Recipe, choose_recipe, choose_reward_model
from rlhf.config.directories import find_model
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.hub import find_hub_problem

# The option of `model` and `reward_model` that reads the shape of a model at a path.
OWN = "local"
# What the files of models call the number of weights, and the shape by which one is recognised.
COUNT, SHAPE = "num_parameters", ("num_hidden_layers", "hidden_size", "vocab_size")
# So many tokens more or fewer are still the same tokenizer, with some added.
MOST_ADDED = 512


def register_recipes(directories: tuple[Path, ...], own: ModelFacts | None = None) -> None:
    """Let the defaults list choose by the model. `directories` hold the files of models; `own` are the facts of a model
    whose file does not state them, as model=local."""

    def choose(model: str, group: str) -> str:
        return choose_option(model, read_facts(model, directories) or own, group, directories)

    OmegaConf.register_new_resolver("rlhf_recipe", choose, replace=True)


def choose_option(model: str, facts: ModelFacts | None, group: str, directories: tuple[Path, ...]) -> str:
    """Choose the option of a group beside a model. A model that is unknown, which is refused later, counts as tiny."""
    if group != "reward_model":
        recipe: Recipe = DEMO if facts is None else choose_recipe(facts)
        return str(getattr(recipe, group))
    chosen = None if facts is None else choose_reward_model(facts)
    smaller = None if chosen is None else read_facts(chosen, directories)
    return model if facts is None or smaller is None or smaller.parameters >= facts.parameters else str(chosen)


@cache
def read_entry(path: Path) -> dict[str, str]:
    """Return what an option of `model` states, which is flat: a key and a value a line."""
    return dict(re.findall(r"^(\w+): (\S+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


@cache
def read_facts(name: str, directories: tuple[Path, ...]) -> ModelFacts | None:
    """Return the facts of an option of `model`; None if no directory has its file, or it states no number of weights."""
    path = next((path for directory in directories if (path := directory / f"{name}.yaml").is_file()), None)
    stated = {} if path is None else read_entry(path)
    return ModelFacts(name, stated.get("family", "other"), int(stated[COUNT])) if stated.get(COUNT, "0") != "0" else None


def find_entry(path: str, directory: Path) -> str | None:
    """Return the option of `model` whose hub id a path is."""
    return next((file.stem for file in sorted(directory.glob("*.yaml")) if read_entry(file).get("path") == path), None)


def expand_model(argument: str, directory: Path) -> list[str]:
    """Return the words for a model that is typed as a hub id or a directory: model=facebook/opt-125m is model=opt-125m, and
    model=DIR is model=local model.path=DIR. Any other word is itself. Raises ConfigError for a sweep over both kinds."""
    if (match := re.fullmatch(r"(model|reward_model)=([\w.~/,-]*/[\w.~/,-]*)", argument)) is None:
        return [argument]
    group, typed = match[1], match[2].split(",")
    options = [find_entry(path, directory) if "/" in path else path for path in typed]
    if None not in options:
        return [f"{group}={','.join(map(str, options))}"]
    if all("/" in path for path in typed):
        return [f"{group}={OWN}", f"{group}.path={','.join(os.path.expanduser(path) for path in typed)}"]
    problem = "options of the group and models by path cannot be swept together"
    raise ConfigError(group, match[2], problem, f"give all by path: {group}={OWN} {group}.path=DIR,DIR")


def read_own_facts(path: str, revision: str | None, gguf_file: str | None, directory: Path) -> ModelFacts | None:
    """Return the facts of a model at a path: those of the option of `model` that it is or has the shape of, else its own.
    None if there is no config.json within reach: such a model is refused before it is used."""
    if name := find_entry(path, directory):
        return read_facts(name, (directory,))
    location = find_model(Path(path).expanduser())
    if location.is_dir():
        if gguf_file is not None:
            file = location / gguf_file
            return ModelFacts(None, "other", file.stat().st_size) if file.is_file() else None  # about a byte a weight
        if base := read_json(location / "adapter_config.json").get("base_model_name_or_path"):
            return read_own_facts(str(base), None, None, directory)
        return facts_of(read_json(location / "config.json"), directory)
    if Path(path).expanduser().exists() or path.startswith(("/", "./", "../", "~", "outputs/")):
        return None
    settings = fetch_settings(path, revision)
    return None if settings is None else facts_of(read_json(Path(settings)), directory)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def fetch_settings(name: str, revision: str | None) -> str | None:
    """Return the path of a hub model's config.json in the cache, downloaded if need be; None if the hub does not give the
    model, which is refused later. Raises ConfigError if the download alone fails."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    if isinstance(cached, str):
        return cached
    if find_hub_problem(name, revision) is not None:
        return None
    try:
        return hf_hub_download(name, "config.json", revision=revision)
    except Exception as error:  # the HTTP client's own errors are no public names
        problem = f"its config.json cannot be downloaded ({first_line(error)})"
        raise ConfigError("model.path", name, problem, "give a directory that holds config.json, or a hub id") from error


def facts_of(settings: dict[str, Any], directory: Path) -> ModelFacts | None:
    """Return the facts of a model of these settings, transformers' config.json; None if they state no shape."""
    text = settings.get("text_config", settings)
    family = str(settings.get("model_type", "other"))
    width = first_of(text, "hidden_size", "n_embd", "d_model")
    layers = first_of(text, "num_hidden_layers", "n_layer", "num_layers")
    vocabulary = first_of(text, "vocab_size")
    if not (width and layers and vocabulary):
        return None
    wide = first_of(text, "ffn_dim", "intermediate_size", "n_inner") or 4 * width
    matrices = 3 if "rms_norm_eps" in text else 2  # families with RMSNorm are those with gated feed-forward layers
    parameters = layers * (4 * width * width + matrices * width * wide) + vocabulary * width
    known = find_shape(family, (layers, width, vocabulary), directory)
    return known or ModelFacts(None, family, parameters)


def first_of(settings: dict[str, Any], *names: str) -> int:
    """Return the first number that is stated under one of the names; 0 if none is."""
    return next((value for name in names if isinstance(value := settings.get(name), int)), 0)


def find_shape(family: str, shape: tuple[int, ...], directory: Path) -> ModelFacts | None:
    """Return the option of `model` that has this shape: as many layers, as wide, and but for tokens that a user added as
    many."""
    for file in sorted(directory.glob("*.yaml")):
        stated = read_entry(file)
        layers, width, vocabulary = (int(stated.get(key, 0)) for key in SHAPE)
        if stated.get("family") == family and (layers, width) == shape[:2] and abs(vocabulary - shape[2]) < MOST_ADDED:
            return read_facts(file.stem, (directory,))
    return None
