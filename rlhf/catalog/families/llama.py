"""Llama and SmolLM2."""

from rlhf.catalog.family import ALWAYS, GATED, Family, grouped_query_arguments

FAMILY = Family(
    name="llama",
    sizes="Llama 2, 3, 3.1, 3.2, SmolLM2",
    layer_names=GATED,
    arguments=grouped_query_arguments,
    free_head_width=True,
    paged_since=ALWAYS,
)
