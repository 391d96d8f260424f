"""Quantized models: reading a GGUF file into plain weights, and refusing what cannot be trained.

What is trained is a plain model, and what is saved says so: a config.json that names a quantization makes transformers take
the weights beside it for quantized ones.
"""

from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.runtime.compat.transformers import drop_stated_quantization


def drop_quantization(settings: Any) -> str | None:
    """Remove what a transformers configuration, or the text part of one, says of quantization; returns the method that it
    named, if it named one."""
    method = None
    for part in (settings, settings.get_text_config()):
        stated = drop_stated_quantization(part)
        if stated is not None:
            named = stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method
            method = str(getattr(named, "value", named))
    return method


def check_quantization(key: str, path: str, settings: Any) -> None:
    """Make a model's configuration that of a plain model. Raises ConfigError if its weights are quantized, but for GGUF:
    transformers unpacks such a file as it loads it."""
    method = drop_quantization(settings)
    if method not in (None, "gguf"):
        problem = f"its weights are quantized ({method}), and only plain weights can be trained"
        fix = "give the model that it was quantized from, or one dequantized and saved again"
        raise ConfigError(key, path, problem, fix)


def dequantization_options(gguf_file: str | None) -> dict[str, Any]:
    """Return the arguments of from_pretrained with which a GGUF file is unpacked into plain weights; where kernels for them
    are installed, transformers would keep the packed weights, which cannot be trained."""
    import transformers

    kind = getattr(transformers, "GgufConfig", None)  # releases without it always unpack
    return {"quantization_config": kind(dequantize=True)} if gguf_file and kind is not None else {}


def remove_quantization_marks(model: Any) -> None:
    """Make transformers take a model whose weights have been unpacked for the plain model that it is."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    drop_quantization(model.config)
