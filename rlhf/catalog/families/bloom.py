"""BLOOM: ALiBi, whose heads have slopes of their own, so that ranks cannot share them."""

from rlhf.catalog.family import Family, LayerNames

FAMILY = Family(
    name="bloom",
    sizes="BLOOM 560M to 176B",
    layer_names=LayerNames(
        ("self_attention.query_key_value",), "self_attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"
    ),
    arguments=lambda m: {},
    limited=False,
    rotates_pairs=False,
    shareable=False,
)
