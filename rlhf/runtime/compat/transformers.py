"""transformers' private names. Tried on transformers 5.17 to 5.24."""

from typing import Any


def attention_name(model: Any) -> str:
    """Return the name under which a model looks its attention function up."""
    name: str = model.config._attn_implementation
    return name


def set_attention_name(model: Any, name: str) -> None:
    """Make a model look its attention function up under `name`, whatever its family declares: Gemma 2 declares no `sdpa`,
    for want of a `softcap`."""
    from transformers.modeling_utils import PreTrainedModel

    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part._supports_sdpa = True  # of this object alone
    model.config._attn_implementation = name


def looks_attention_up(model: Any) -> bool:
    """Whether a model's own code takes its attention function from transformers' table."""
    return bool(getattr(model, "_supports_attention_backend", False))


def mark_initialized(parameter: Any) -> None:
    """Keep transformers from drawing a parameter anew: it has its value."""
    parameter._is_hf_initialized = True


def build_model(model_class: Any, hf_config: Any, **options: Any) -> Any:
    """Build a model without loading weights. The automatic classes have a public method for it, a model's class has not."""
    build = getattr(model_class, "from_config", None) or model_class._from_config
    return build(hf_config, **options)


def is_automatic(model_class: Any) -> bool:
    """Whether a class finds a model's class by its configuration, as AutoModelForCausalLM does."""
    return hasattr(model_class, "from_config")


def commit_of(hf_config: Any) -> str | None:
    """Return the hub's commit that a model was loaded from; None for a directory."""
    commit: str | None = getattr(hf_config, "_commit_hash", None)
    return commit


def drop_stated_quantization(hf_config: Any) -> Any:
    """Remove what one part of a configuration says of quantization; returns the entry that it had, or None."""
    stated = getattr(hf_config, "quantization_config", None)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(hf_config, name):
            delattr(hf_config, name)
    return stated
