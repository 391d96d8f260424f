"""CodeGen, which mixes the queries, keys and values of its heads, so that ranks cannot share them."""

from collections.abc import Iterator

from rlhf.catalog.family import Family, LayerNames, Problem, Shape, rotary_arguments


def find_problems(shape: Shape) -> Iterator[Problem]:
    """Heads in four groups."""
    if shape.num_attention_heads % 4:
        yield "num_attention_heads", "a codegen has a multiple of 4", "change it"


FAMILY = Family(
    name="codegen",
    sizes="CodeGen 350M to 16B",
    layer_names=LayerNames(("attn.qkv_proj",), "attn.out_proj", ("mlp.fc_in",), "mlp.fc_out", parallel=True),
    arguments=rotary_arguments,
    problems=find_problems,
    shareable=False,
    paged_since=(5, 24),
)
