"""Qwen3."""

from rlhf.catalog.family import ALWAYS, GATED, Family, grouped_query_arguments

FAMILY = Family(
    name="qwen3",
    sizes="Qwen3 0.6B to 32B",
    layer_names=GATED,
    arguments=grouped_query_arguments,
    free_head_width=True,
    paged_since=ALWAYS,
)
