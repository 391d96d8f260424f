"""Mistral."""

from rlhf.catalog.family import ALWAYS, GATED, Family, grouped_query_arguments

FAMILY = Family(
    name="mistral",
    sizes="Mistral 7B",
    layer_names=GATED,
    arguments=lambda m: grouped_query_arguments(m) | {"sliding_window": None},
    free_head_width=True,
    paged_since=ALWAYS,
)
