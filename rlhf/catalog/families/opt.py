"""OPT."""

from rlhf.catalog.family import ALWAYS, PLAIN, Family

FAMILY = Family(
    name="opt",
    sizes="OPT 125M to 175B",
    layer_names=PLAIN,
    arguments=lambda m: {"ffn_dim": m.ffn, "word_embed_proj_dim": m.embedding, "do_layer_norm_before": m.norm_first},
    deviation="init_std",
    rotates_pairs=False,
    paged_since=ALWAYS,
    has_deepspeed_kernels=True,
)
