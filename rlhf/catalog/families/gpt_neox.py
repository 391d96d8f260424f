"""GPT-NeoX and Pythia, which rotate a quarter of each head."""

from rlhf.catalog.family import ALWAYS, Family, LayerNames

FAMILY = Family(
    name="gpt_neox",
    sizes="Pythia 70M to 12B, GPT-NeoX 20B, Dolly v2 3B to 12B",
    layer_names=LayerNames(
        ("attention.query_key_value",), "attention.dense", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", parallel=True
    ),
    arguments=lambda m: {"intermediate_size": m.intermediate_size, "rotary_pct": 0.25},
    paged_since=ALWAYS,
    paged_before=(5, 24),
)
