"""Products on a CPU with weights that lie in the order in which MKL reads them. Else MKL lays a weight out so in every
product of several rows, of 8 as long as the product itself; here it is once for each batch, since weights change."""

import warnings
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models.step.layers import Apart, Chain, Linear, Map, Reader, Reordered
from rlhf.runtime.compat.torch import multiply_packed, pack_weight

# The rows for which a weight is laid out: the order serves fewer as well as an order of their own does.
ROWS = 256
# What is tried: rows of so many numbers near 1. Sums of other numbers would be off by 20.
TRIED, GAP = 512, 1e-3


@dataclass(frozen=True)
class Packed:
    """A linear layer with a packed copy of its weight."""

    linear: Linear
    packed: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return [B, N] for [B, K]."""
        return multiply_packed(x, self.packed, self.linear.weight, self.linear.bias)


def pack_products(reader: Reader) -> Reader:
    """Return a reader with packed copies of the weights of all its products; as it is where MKL has none."""
    if not can_pack():
        return reader
    blocks = []
    for block in reader.blocks:
        attention = replace(block.attention, project=pack(block.attention.project), out=pack(block.attention.out))
        forward = replace(block.feed_forward, up=pack(block.feed_forward.up), down=pack(block.feed_forward.down))
        blocks.append(replace(block, attention=attention, feed_forward=forward))
    return replace(reader, blocks=blocks, head=pack(reader.head))


def pack(change: Map) -> Map:
    """Return a map with packed copies of the weights of the linear layers in it."""
    if isinstance(change, Linear):
        return Packed(change, pack_weight(change.weight.contiguous(), ROWS))
    if isinstance(change, Apart):
        return Apart(tuple(map(pack, change.parts)))
    if isinstance(change, Chain):
        return Chain(tuple(map(pack, change.maps)))
    return replace(change, linear=pack(change.linear)) if isinstance(change, Reordered) else change


@cache
def can_pack() -> bool:
    """Try once whether a packed weight gives what the weight gives, with fewer and more rows than it was packed for: MKL's
    manual does not promise it. Warns of one that does not. False where torch has no MKL."""
    if not torch.backends.mkl.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(TRIED, TRIED, generator=draw), torch.randn(2 * ROWS, TRIED, generator=draw)
    try:
        product = pack(Linear(weight))
        gaps = [(product(x[:rows]) - F.linear(x[:rows], weight)).abs().max() for rows in (1, 3, 16, 48, ROWS, 2 * ROWS)]
        problem = None if max(gaps) <= GAP else f"products are off by {max(gaps):.3g}"
    except (AttributeError, RuntimeError) as error:
        problem = str(error)
    if problem is not None:
        warnings.warn(f"weights are not packed for decode steps, which are slower: {problem}", stacklevel=2)
    return problem is None
