"""GPT-J."""

from rlhf.catalog.family import Family, LayerNames, rotary_arguments, separate_projections

FAMILY = Family(
    name="gptj",
    sizes="GPT-J 6B",
    layer_names=LayerNames(separate_projections("attn"), "attn.out_proj", ("mlp.fc_in",), "mlp.fc_out", parallel=True),
    arguments=rotary_arguments,
    paged_since=(5, 24),
)
