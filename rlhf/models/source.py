"""Where models come from, and what can be said of them before anything large is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config.derive import max_sequence
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config, Model
from rlhf.experiment.integrity import unreadable_json
from rlhf.models.families import last_position, shape_of
from rlhf.models.quantization import check_quantization

REACH_S = 5.0
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a directory or hub id, and the key of the configuration that names it."""

    path: str
    key: str
    revision: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None

    @property
    def place(self) -> str:
        """The directory with ~ expanded, or the hub id."""
        return expanded(self.path)

    @property
    def options(self) -> dict[str, Any]:
        """What transformers' from_pretrained takes."""
        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return options | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def source_of(model: Model, key: str) -> Source:
    """The source of `model.path` or `reward_model.path`; `key` is the group."""
    return Source(str(model.path), f"{key}.path", model.revision, model.trust_remote_code, model.gguf_file)


def expanded(path: str) -> str:
    """A directory with ~ expanded, or a hub id as it is."""
    place = Path(path).expanduser()
    return str(place) if place.exists() else path


def read_settings(source: Source) -> Any:
    """transformers' configuration of the model there. Raises ConfigError within seconds if there is none, and if the
    weights are quantized."""
    from transformers import AutoConfig

    reach(source)
    try:
        settings = AutoConfig.from_pretrained(source.place, **source.options)
        shape_of(settings)  # images have none
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        fix = "give a directory with config.json and weights, or a reachable hub id"
        raise ConfigError(source.key, source.path, f"it cannot be loaded ({first_line(error)})", fix) from error
    check_quantization(source.key, source.path, settings)
    return settings


def reach(source: Source) -> None:
    """Ask once, for a few seconds, whether the hub has the model; transformers would go on asking for most of a minute."""
    if Path(source.place).is_dir():
        return
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    fix = "give a directory with config.json and weights, or a hub id"
    try:
        if isinstance(
            try_to_load_from_cache(source.path, source.gguf_file or "config.json", revision=source.revision), str
        ):
            return
    except HFValidationError as error:
        raise ConfigError(source.key, source.path, "it is neither a directory nor a hub id", fix) from error
    problem = "it is neither a directory nor in the cache, and HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            HfApi().model_info(source.path, revision=source.revision, timeout=REACH_S)
            return
        except Exception as error:  # the HTTP client's own errors are no public names
            problem = f"it is no directory here, and the hub does not give it ({first_line(error)})"
    raise ConfigError(source.key, source.path, problem, fix)


def fill_shape(model: Model, key: str) -> Model:
    """A model whose shape is left to its configuration (model=local), with that shape."""
    if model.layers > 0 or model.path is None:
        return model
    source = source_of(model, key)
    try:
        return with_settings(model, read_settings(source))
    except ValueError as error:
        fix = "give one that transformers' AutoModelForCausalLM loads"
        raise ConfigError(source.key, source.path, "it is no language model", fix) from error


def with_settings(model: Model, settings: Any) -> Model:
    """A model with the shape that transformers' configuration states, its parameters counted without memory for them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(settings, trust_remote_code=model.trust_remote_code)
    return replace(model, **shape_of(settings), parameters=sum(p.numel() for p in empty.parameters()))


def fill_shapes(config: Config) -> Config:
    """The configuration with the shapes of models that state none. A reward model that is left open altogether
    (model=local sets both) starts from the policy's."""
    model, reward_model = config.model, config.reward_model
    if reward_model.layers < 1 and reward_model.path is None:
        same = {key: getattr(model, key) for key in ("path", "revision", "gguf_file", "trust_remote_code")}
        reward_model = replace(reward_model, **same)
    return replace(config, model=fill_shape(model, "model"), reward_model=fill_shape(reward_model, "reward_model"))


def check_source(source: Source, config: Config, scorer: bool, declared: Model | None = None) -> None:
    """Raise ConfigError for a model that cannot be used: no configuration, no weights, too few positions, no scalar head
    (`scorer`) or one where a language model is wanted, a tokenizer with more tokens than the embedding has rows, or another
    shape than `declared`. Reads no weights."""
    place = Path(source.place)
    from rlhf.models.adapters import adapter_base

    base = adapter_base(source)
    settings = read_settings(base or source)
    shape = shape_of(settings)
    if place.is_dir() and not any(file for pattern in WEIGHTS for file in place.glob(pattern)):
        raise ConfigError(source.key, source.path, "the directory holds no weights", "give one with model.safetensors")
    check_positions(source, settings, config)
    check_head(source, scorer)
    check_tokenizer(source, shape["vocabulary"])
    if problem := unreadable_json(place):
        raise ConfigError(source.key, source.path, problem, "copy or download the model again")
    if declared is not None:
        differing = [key for key in ("layers", "width", "heads") if getattr(declared, key) != shape[key]]
        if differing:
            found = ", ".join(f"{key}={shape[key]}" for key in differing)
            group = source.key.split(".")[0]
            fix = f"use {group}=local {source.key}=..., which reads the shape"
            raise ConfigError(source.key, source.path, f"it has {found}, unlike {group}={declared.name}", fix)


def check_positions(source: Source, settings: Any, config: Config) -> None:
    """The longest prompt and response fit."""
    if last_position(settings) < max_sequence(config):
        problem = f"it has {last_position(settings)} positions, but prompt and response reach {max_sequence(config)} tokens"
        raise ConfigError(source.key, source.path, problem, "lower data.max_prompt_tokens or the response lengths")


def check_head(source: Source, scorer: bool) -> None:
    """A scorer's files hold a head, a language model's none (where the files tell without being loaded)."""
    from safetensors import SafetensorError

    from rlhf.models.checkpoint import safetensors_names

    try:
        names = safetensors_names(Path(source.place))
    except (SafetensorError, ValueError, KeyError) as error:
        problem = f"its weights cannot be read ({first_line(error)})"
        raise ConfigError(source.key, source.path, problem, "copy or download the model again") from error
    if names is None:
        return
    if scorer and "score.weight" not in names:
        problem = "it is no reward model: it has no weights for score.weight"
        raise ConfigError(source.key, source.path, problem, "give a sequence classifier with one label")
    if not scorer and source.key in ("ppo.actor", "model.path") and "score.weight" in names:
        raise ConfigError(source.key, source.path, "it is a reward model, not a language model", "give a language model")


def check_tokenizer(source: Source, rows: int) -> None:
    """Every token but padding has a row in the embedding."""
    if source.gguf_file is not None:
        return
    from rlhf.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(source.path, source.key, source.revision, source.trust_remote_code)
    largest = max(number for token, number in tokenizer.get_vocab().items() if number != tokenizer.pad_token_id)
    if largest >= rows:
        problem = f"its tokenizer has {largest + 1} tokens, its embedding only {rows} rows"
        raise ConfigError(source.key, source.path, problem, "give the tokenizer that belongs to the model")
