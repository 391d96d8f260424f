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
    """Build transformers' configuration of a model of this shape with random weights."""
    from transformers import CONFIG_MAPPING

    deviation = INIT_SCALE / math.sqrt(model.hidden_size)
    build: Any = CONFIG_MAPPING[model.family]
    family = FAMILIES[model.family]
    return build(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=model.tie_word_embeddings,
        **{family.deviation: deviation},
        **family.arguments(model),
        **special_tokens,
    )


def last_position(settings: Any) -> int:
    """Return the longest sequence that a model of this configuration reads, in tokens; ALiBi (BLOOM) sets no limit."""
    limit = getattr(settings, "max_position_embeddings", None)
    return int(limit) if limit and is_limited(settings.model_type) else NO_LIMIT


def shape_of(settings: Any) -> dict[str, Any]:
    """Return the keys of `Model` that transformers' configuration of any family states; fields that it does not state get
    the usual default."""
    text = settings.get_text_config()
    width, heads = text.hidden_size, text.num_attention_heads
    ffn = next((n for name in ("ffn_dim", "intermediate_size", "n_inner") if (n := getattr(text, name, None))), 4 * width)
    return {
        "family": text.model_type if text.model_type in FAMILIES else "other",
        "num_hidden_layers": text.num_hidden_layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or width // heads,
        "intermediate_size": ffn,
        "gated_mlp": hasattr(text, "rms_norm_eps"),  # the families with RMSNorm are those with gated feed-forward layers
        "word_embed_proj_dim": getattr(text, "word_embed_proj_dim", width),
        "do_layer_norm_before": getattr(text, "do_layer_norm_before", True),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": getattr(text, "max_position_embeddings", None) or NO_LIMIT,
        "tie_word_embeddings": bool(settings.tie_word_embeddings),
    }
