"""OPT."""

from rlhf.catalog.family import ALWAYS, PLAIN, Family

FAMILY = Family(
    name="opt",
    sizes="OPT 125M to 175B",
    layer_names=PLAIN,
    arguments=lambda m: {
        "ffn_dim": m.intermediate_size,
        "word_embed_proj_dim": m.word_embed_proj_dim,
        "do_layer_norm_before": m.do_layer_norm_before,
    },
    deviation="init_std",
    rotates_pairs=False,
    paged_since=ALWAYS,
    has_deepspeed_kernels=True,
)
