"""GPT-2."""

from rlhf.catalog.family import ALWAYS, Family, LayerNames

FAMILY = Family(
    name="gpt2",
    sizes="GPT-2 124M to 1.5B",
    layer_names=LayerNames(("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    arguments=lambda m: {"n_inner": m.intermediate_size},
    rotates_pairs=False,
    paged_since=ALWAYS,
)
