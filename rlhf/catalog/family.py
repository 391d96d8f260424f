"""What this program knows of a family of models; a file of rlhf/catalog/families/ has what holds for one family."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

# A release of transformers, major and minor; `ALWAYS` is before the first that this program runs with.
Release = tuple[int, int]
ALWAYS: Release = (0, 0)
# A key of the shape, what is wrong with its value, and what to do.
Problem = tuple[str, str, str]


class Shape(Protocol):
    """The shape of a model, as the `model` group of the configuration states it. Widths are in elements."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    word_embed_proj_dim: int
    do_layer_norm_before: bool


@dataclass(frozen=True)
class LayerNames:
    """What transformers calls the linear layers of a block: those that make queries, keys and values (or all in one), the
    attention's output, the feed-forward layer's input (two if gated) and output. `parallel`: the feed-forward layer reads
    what the attention reads, not what it wrote."""

    attended: tuple[str, ...]
    mixed: str
    wide: tuple[str, ...]
    narrow: str
    parallel: bool = False

    @property
    def leaves(self) -> tuple[str, ...]:
        """The last parts of the names, each once: what adapters can be put on."""
        names = (*self.attended, self.mixed, *self.wide, self.narrow)
        return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def separate_projections(module: str) -> tuple[str, ...]:
    """Names of three projections inside a module."""
    return tuple(f"{module}.{letter}_proj" for letter in "qkv")


# Llama's names and OPT's, which are also taken for those of a family that is not known, if its layers are gated or not.
GATED = LayerNames(separate_projections("self_attn"), "self_attn.o_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
PLAIN = LayerNames(separate_projections("self_attn"), "self_attn.out_proj", ("fc1",), "fc2")


def nothing_more(shape: Shape) -> Iterator[Problem]:
    """Accept every shape."""
    return iter(())


@dataclass(frozen=True)
class Family:
    """A family of models that can be built with random weights.

    Attributes:
        name: transformers' model_type.
        sizes: the options of `model` beside its tiny one, for people.
        layer_names: what the linear layers of a block are called.
        arguments: what transformers' configuration takes for a shape, beside the names that all families share.
        deviation: what transformers' configuration calls the standard deviation of random weights.
        initial_norm: the weight of a norm that changes nothing.
        norm_last: whether a layer norm follows the feed-forward layer too.
        limited: whether there is a longest sequence that a model can read.
        rotates_pairs: whether positions rotate pairs of elements of a head, so that its width is even.
        free_head_width: whether the width of a head can be other than width / heads.
        problems: what else is wrong with a shape.
        shareable: whether ranks can share its layers while they sample.
        paged_since: the first release of transformers whose continuous batching answers as `generate` does; None: there is
            none (tests/unit/rollout/test_paged.py; measured on transformers 5.17, 5.23 and 5.24).
        paged_before: the release since when it no longer does; None: there is none.
        has_deepspeed_kernels: whether DeepSpeed's hybrid engine serves it.
    """

    name: str
    sizes: str
    layer_names: LayerNames
    arguments: Callable[[Shape], dict[str, Any]]
    deviation: str = "initializer_range"
    initial_norm: float = 1.0
    norm_last: bool = False
    limited: bool = True
    rotates_pairs: bool = True
    free_head_width: bool = False
    problems: Callable[[Shape], Iterator[Problem]] = nothing_more
    shareable: bool = True
    paged_since: Release | None = None
    paged_before: Release | None = None
    has_deepspeed_kernels: bool = False

    def is_paged(self, release: Release) -> bool:
        """Whether the continuous batching of a release of transformers serves it."""
        since, before = self.paged_since, self.paged_before
        return since is not None and since <= release and (before is None or release < before)


def grouped_query_arguments(shape: Shape) -> dict[str, Any]:
    """Arguments of the families with grouped-query attention and a gated feed-forward layer."""
    return {
        "intermediate_size": shape.intermediate_size,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
    }


def rotary_arguments(shape: Shape) -> dict[str, Any]:
    """Arguments of GPT-J and CodeGen, which rotate 64 elements of each head (CodeGen-350M: 32)."""
    rotated = min(64, shape.head_dim // 2) if shape.hidden_size < 2048 else 64
    return {"n_inner": shape.intermediate_size, "rotary_dim": rotated}
