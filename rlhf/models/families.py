"""What transformers calls the parts of each family: building its configuration from a shape, and reading a shape from it.

transformers' configurations share names for width, layers, heads and positions; this table holds what they do not share.
"""

import math
from collections.abc import Callable
from typing import Any

from rlhf.config.schema import Model

# Standard deviation of random weights times the root of the width: the usual 0.006 to 0.02 suit widths from 768 up; a tiny
# model drawn that small learns to copy from the prompt ten times later, or never.
INIT_SCALE = 0.55
# GPT-NeoX, GPT-J and CodeGen rotate a part of each head only: a quarter, or 64 (CodeGen-350M: 32) elements.
ROTARY_SHARE = 0.25
# Tokens that a layer of local attention sees.
NEO_WINDOW, WINDOW = 256, 4096
NO_LIMIT = 2**31 - 1


def grouped_query_arguments(model: Model) -> dict[str, Any]:
    """Arguments of the families with grouped-query attention and a gated feed-forward layer."""
    return {
        "intermediate_size": model.ffn,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
    }


def rotary_width(model: Model) -> int:
    """Elements of a head that GPT-J and CodeGen rotate."""
    return min(64, model.head_width // 2) if model.width < 2048 else 64


ARGUMENTS: dict[str, Callable[[Model], dict[str, Any]]] = {
    "opt": lambda m: {"ffn_dim": m.ffn, "word_embed_proj_dim": m.embedding, "do_layer_norm_before": m.norm_first},
    "bloom": lambda m: {},
    "gpt_neox": lambda m: {"intermediate_size": m.ffn, "rotary_pct": ROTARY_SHARE},
    "gptj": lambda m: {"n_inner": m.ffn, "rotary_dim": rotary_width(m)},
    "gpt_neo": lambda m: {
        "intermediate_size": m.ffn,
        "window_size": NEO_WINDOW,
        "attention_types": [[["global", "local"], m.layers // 2]],
    },
    "gpt2": lambda m: {"n_inner": m.ffn},
    "codegen": lambda m: {"n_inner": m.ffn, "rotary_dim": rotary_width(m)},
    "llama": grouped_query_arguments,
    "qwen2": lambda m: {key: value for key, value in grouped_query_arguments(m).items() if key != "head_dim"},
    "qwen3": grouped_query_arguments,
    "mistral": lambda m: grouped_query_arguments(m) | {"sliding_window": None},
    "gemma2": lambda m: grouped_query_arguments(m) | {"sliding_window": WINDOW, "query_pre_attn_scalar": m.head_width},
}


def build_hf_config(model: Model, **special_tokens: int | None) -> Any:
    """transformers' configuration of a model of this shape with random weights."""
    from transformers import CONFIG_MAPPING

    deviation = INIT_SCALE / math.sqrt(model.width)
    build: Any = CONFIG_MAPPING[model.family]
    return build(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.positions,
        tie_word_embeddings=model.tied,
        **{"init_std" if model.family == "opt" else "initializer_range": deviation},
        **ARGUMENTS[model.family](model),
        **special_tokens,
    )


def last_position(settings: Any) -> int:
    """The longest sequence that a model of this configuration reads, in tokens; ALiBi (BLOOM) sets no limit."""
    limit = getattr(settings, "max_position_embeddings", None)
    return int(limit) if limit and settings.model_type != "bloom" else NO_LIMIT


def shape_of(settings: Any) -> dict[str, Any]:
    """The keys of `Model` that transformers' configuration of any family states: of those that it does not, the usual."""
    text = settings.get_text_config()
    width, heads = text.hidden_size, text.num_attention_heads
    ffn = next((n for name in ("ffn_dim", "intermediate_size", "n_inner") if (n := getattr(text, name, None))), 4 * width)
    return {
        "family": text.model_type if text.model_type in ARGUMENTS else "other",
        "layers": text.num_hidden_layers,
        "width": width,
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_width": getattr(text, "head_dim", None) or width // heads,
        "ffn": ffn,
        "gated": hasattr(text, "rms_norm_eps"),  # the families with RMSNorm are those with gated feed-forward layers
        "embedding": getattr(text, "word_embed_proj_dim", width),
        "norm_first": getattr(text, "do_layer_norm_before", True),
        "vocabulary": text.vocab_size,
        "positions": getattr(text, "max_position_embeddings", None) or NO_LIMIT,
        "tied": bool(settings.tie_word_embeddings),
    }
