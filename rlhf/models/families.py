"""transformers' configuration of a model: building it from a shape, and reading a shape from it.

transformers' configurations share names for width, layers, heads and positions; rlhf/catalog/families/ has the others.
"""

import math
from typing import Any

from rlhf.catalog.families import FAMILIES, is_limited
from rlhf.config.schema import Model

# Standard deviation of random weights times the root of the width: the usual 0.006 to 0.02 suit widths from 768 up; a tiny
# model drawn that small learns to copy from the prompt ten times later, or never.
INIT_SCALE = 0.55
NO_LIMIT = 2**31 - 1


def build_hf_config(model: Model, **special_tokens: int | None) -> Any:
    """transformers' configuration of a model of this shape with random weights."""
    from transformers import CONFIG_MAPPING

    deviation = INIT_SCALE / math.sqrt(model.width)
    build: Any = CONFIG_MAPPING[model.family]
    family = FAMILIES[model.family]
    return build(
        vocab_size=model.vocabulary,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.positions,
        tie_word_embeddings=model.tied,
        **{family.deviation: deviation},
        **family.arguments(model),
        **special_tokens,
    )


def last_position(settings: Any) -> int:
    """The longest sequence that a model of this configuration reads, in tokens; ALiBi (BLOOM) sets no limit."""
    limit = getattr(settings, "max_position_embeddings", None)
    return int(limit) if limit and is_limited(settings.model_type) else NO_LIMIT


def shape_of(settings: Any) -> dict[str, Any]:
    """The keys of `Model` that transformers' configuration of any family states: of those that it does not, the usual."""
    text = settings.get_text_config()
    width, heads = text.hidden_size, text.num_attention_heads
    ffn = next((n for name in ("ffn_dim", "intermediate_size", "n_inner") if (n := getattr(text, name, None))), 4 * width)
    return {
        "family": text.model_type if text.model_type in FAMILIES else "other",
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
