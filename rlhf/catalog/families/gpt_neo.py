"""GPT-Neo, whose layers attend globally and locally in turn."""

from collections.abc import Iterator

from rlhf.catalog.family import Family, LayerNames, Problem, Shape, separate_projections

# Tokens that a layer of local attention sees.
WINDOW = 256


def find_problems(shape: Shape) -> Iterator[Problem]:
    """Yield a layer of each kind in turn."""
    if shape.num_hidden_layers % 2:
        yield "num_hidden_layers", "a gpt_neo has pairs of layers", "give an even number"


FAMILY = Family(
    name="gpt_neo",
    sizes="GPT-Neo 125M to 2.7B",
    layer_names=LayerNames(separate_projections("attn.attention"), "attn.attention.out_proj", ("mlp.c_fc",), "mlp.c_proj"),
    arguments=lambda m: {
        "intermediate_size": m.intermediate_size,
        "window_size": WINDOW,
        "attention_types": [[["global", "local"], m.num_hidden_layers // 2]],
    },
    rotates_pairs=False,
    problems=find_problems,
)
