"""Where models come from, and what can be said of them before anything large is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.hub import FETCH, find_hub_problem
from rlhf.config.schema import Config, Model
from rlhf.models.families import shape_of
from rlhf.models.quantization import check_quantization

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
    def name_or_path(self) -> str:
        """The directory with ~ expanded, or the hub id."""
        return expand_path(self.path)

    @property
    def options(self) -> dict[str, Any]:
        """The further arguments of transformers' from_pretrained."""
        options = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return options | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def source_of(model: Model, key: str) -> Source:
    """Return the source of `model.path` or `reward_model.path`; `key` is the group."""
    return Source(str(model.path), f"{key}.path", model.revision, model.trust_remote_code, model.gguf_file)


def expand_path(path: str) -> str:
    """Return a directory with ~ expanded, or a hub id as it is."""
    expanded = Path(path).expanduser()
    return str(expanded) if expanded.exists() else path


def load_hf_config(source: Source) -> Any:
    """Load transformers' configuration of the model at this path. Raises ConfigError within seconds if there is none, and
    if the weights are quantized."""
    from transformers import AutoConfig

    check_hub_access(source)
    try:
        settings = AutoConfig.from_pretrained(source.name_or_path, **source.options)
        shape_of(settings)  # images have none
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        fix = "give a directory with config.json and weights, or a reachable hub id"
        raise ConfigError(source.key, source.path, f"it cannot be loaded ({first_line(error)})", fix) from error
    check_quantization(source.key, source.path, settings)
    return settings


def check_hub_access(source: Source) -> None:
    """Ask once, for a few seconds, whether the hub has the model; transformers would go on asking for most of a minute."""
    if Path(source.name_or_path).is_dir():
        return
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    fix = f"give a directory with config.json and weights, as {source.key}=DIR, or a hub id"
    try:
        if isinstance(
            try_to_load_from_cache(source.path, source.gguf_file or "config.json", revision=source.revision), str
        ):
            return
    except HFValidationError as error:
        raise ConfigError(source.key, source.path, "it is neither a directory nor a hub id", fix) from error
    if problem := find_hub_problem(source.path, source.revision):
        raise ConfigError(
            source.key, source.path, f"it is neither a directory nor in the cache, and {problem}", f"{fix}; {FETCH}"
        )


def fill_shape(model: Model, key: str) -> Model:
    """Return a model whose shape is left to its configuration (model=local), with that shape."""
    if model.num_hidden_layers > 0 or model.path is None:
        return model
    source = source_of(model, key)
    try:
        return with_hf_config(model, load_hf_config(source))
    except ValueError as error:
        fix = "give one that transformers' AutoModelForCausalLM loads"
        raise ConfigError(source.key, source.path, "it is no language model", fix) from error


def with_hf_config(model: Model, settings: Any) -> Model:
    """Return a model with the shape that transformers' configuration states, its parameters counted without memory for
    them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(settings, trust_remote_code=model.trust_remote_code)
    return replace(model, **shape_of(settings), num_parameters=sum(p.numel() for p in empty.parameters()))


def fill_shapes(config: Config) -> Config:
    """Return the configuration with the shapes of models that state none. A reward model that is left open altogether
    (model=local sets both) starts from the policy's."""
    model, reward_model = config.model, config.reward_model
    if reward_model.num_hidden_layers < 1 and reward_model.path is None:
        same = {key: getattr(model, key) for key in ("path", "revision", "gguf_file", "trust_remote_code")}
        reward_model = replace(reward_model, **same)
    return replace(config, model=fill_shape(model, "model"), reward_model=fill_shape(reward_model, "reward_model"))
