"""Qwen2.5."""

from rlhf.catalog.family import ALWAYS, GATED, Family, grouped_query_arguments

FAMILY = Family(
    name="qwen2",
    sizes="Qwen2.5 0.5B to 72B",
    layer_names=GATED,
    arguments=lambda m: {key: value for key, value in grouped_query_arguments(m).items() if key != "head_dim"},
    paged_since=ALWAYS,
)
