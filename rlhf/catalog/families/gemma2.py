"""Gemma 2, whose norms multiply by 1 + weight."""

from rlhf.catalog.family import GATED, Family, grouped_query_arguments

# Tokens that a layer of local attention sees.
WINDOW = 4096

FAMILY = Family(
    name="gemma2",
    sizes="Gemma 2 2B and 9B",
    layer_names=GATED,
    arguments=lambda m: grouped_query_arguments(m) | {"sliding_window": WINDOW, "query_pre_attn_scalar": m.head_dim},
    initial_norm=0.0,
    norm_last=True,
    free_head_width=True,
    paged_since=(5, 24),
)
