"""What a decode step does in a layer: products, norms, rotary embeddings, and attention over the cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.models.cached import attend_folded, attend_runs
from rlhf.runtime.compat.torch import storage_key

Map = Callable[[Tensor], Tensor]
# Rows for which a CPU's product of weights and columns is faster than that of rows and transposed weights, for which MKL
# needs more time than memory does: 1.3 times as fast for 8 rows of 768 to 50,272 elements, 1.7 for 12, 1.2 for 32.
COLUMNS = range(7, 33)
# Weights that a product reads together are copied side by side where all such copies of a model take at most so many bytes.
COPIED_BYTES = 2**26


@dataclass(frozen=True)
class Linear:
    """A linear layer: its weight [N, K] and its bias [N]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return [B, N] for [B, K]; on a CPU its columns may lie one after another."""
        if not x.is_cpu or x.dtype != torch.float32 or x.size(0) not in COLUMNS:
            return F.linear(x, self.weight, self.bias)
        columns = x.t().contiguous()
        if self.bias is None:
            return torch.mm(self.weight, columns).t()
        return torch.addmm(self.bias[:, None], self.weight, columns).t()


@dataclass(frozen=True)
class Apart:
    """Linear layers that read the same input, of weights that lie apart."""

    parts: tuple[Map, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs [B, sum of N] of all of them for [B, K]."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


@dataclass(frozen=True)
class Reordered:
    """A linear layer whose outputs are put into another order."""

    linear: Map
    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs [B, N] for [B, K]."""
        return self.linear(x).index_select(1, self.order)


@dataclass(frozen=True)
class Chain:
    """Maps one after another."""

    maps: tuple[Map, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` as the last map gives it."""
        for change in self.maps:
            x = change(x)
        return x


class Copies:
    """Tensors made of a model's weights, at addresses that stay, since captured graphs read them there."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.tensors: dict[str, Tensor] = {}
        # The largest that all of a model's copies can take: three products of attention and two of the feed-forward part.
        widths = 3 * config.hidden_size + 2 * (getattr(config, "intermediate_size", None) or 0)
        size = config.num_hidden_layers * widths * config.hidden_size * next(model.parameters()).element_size()
        self.stacks = size <= COPIED_BYTES

    def keep(self, name: str, made: Tensor) -> Tensor:
        """Return a tensor with the numbers of `made`, the same one whenever the name is the same."""
        known = self.tensors.setdefault(name, made)
        return known if known is made else known.copy_(made)

    def stack(self, name: str, *parts: Linear) -> Map:
        """Return linear layers that read the same input as one: a view where their weights lie side by side, a copy where
        that is small, or else each by itself."""
        weights, biases = [part.weight for part in parts], [part.bias for part in parts if part.bias is not None]
        if len(biases) not in (0, len(parts)):
            return Apart(parts)
        beside = side_by_side(weights)
        if not beside and not self.stacks:
            return Apart(parts)
        bias = self.keep(f"{name}.bias", torch.cat(biases)) if biases else None
        if beside:
            rows = sum(weight.size(0) for weight in weights)
            return Linear(weights[0].as_strided((rows, weights[0].size(1)), weights[0].stride()), bias)
        return Linear(self.keep(f"{name}.weight", torch.cat(weights)), bias)


def side_by_side(weights: list[Tensor]) -> bool:
    """Whether matrices lie one after another in one storage, as DeepSpeed's flat buffers hold them."""
    ends = [weight.storage_offset() + weight.numel() for weight in weights]
    is_one = len({storage_key(weight.untyped_storage()) for weight in weights}) == 1
    return is_one and all(
        weight.is_contiguous() and weight.storage_offset() == end for weight, end in zip(weights[1:], ends, strict=False)
    )


@dataclass(frozen=True)
class Rotary:
    """Rotary embeddings: cosines and signed sines [positions, 2, D] of each position, and the element of a head [D] that is
    added to each, times its sine. Elements that are not turned have a cosine of 1 and a sine of 0."""

    table: Tensor
    partner: Tensor

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, 1, D] of positions [B]."""
        cosines, sines = self.table.index_select(0, positions).unbind(1)
        return cosines[:, None], sines[:, None]

    def turn(self, heads: Tensor, at: tuple[Tensor, Tensor]) -> None:
        """Turn [B, H, D] in place."""
        other = heads.index_select(2, self.partner)
        heads.mul_(at[0]).addcmul_(other, at[1])


@dataclass(frozen=True)
class Cached:
    """A layer's cache, as a step sees it: keys and values [B, 2 K, S, D] to write to, and the two [B, K, S, D] to read."""

    both: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Seen:
    """What a step knows of its tokens: the slot [1] that they go to, which cached ones are seen in the form that attention
    takes (models/cached.py), by window, and the rotary embeddings of their positions."""

    slot: Tensor
    masks: dict[int | None, Tensor]
    turns: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Attention:
    """Attention of one token per row. `project` gives queries, keys and values, side by side; `normalize` norms queries
    and keys [B, H + K, D]."""

    project: Map
    out: Map
    heads: int
    shared: int
    scale: float
    rotary: Rotary | None = None
    normalize: Map | None = None
    window: int | None = None
    softcap: float | None = None

    def __call__(self, x: Tensor, cached: Cached, seen: Seen) -> Tensor:
        """Return [B, H] for [B, H]; the token's keys and values are stored."""
        heads, shared = self.heads, self.shared
        parts = self.project(x).contiguous().view(x.size(0), heads + 2 * shared, -1)
        turned = parts[:, : heads + shared]
        if self.normalize is not None:
            turned = self.normalize(turned)
        if self.rotary is not None and seen.turns is not None:
            self.rotary.turn(turned, seen.turns)
        if self.normalize is None:
            cached.both.index_copy_(2, seen.slot, parts[:, heads:, None])
        else:
            cached.keys.index_copy_(2, seen.slot, turned[:, heads:, None])
            cached.values.index_copy_(2, seen.slot, parts[:, heads + shared :, None])
        return self.out(self.attend(turned[:, :heads, None], cached, seen).flatten(1))

    def attend(self, query: Tensor, cached: Cached, seen: Seen) -> Tensor:
        """Compute attention [B, 1, H, D] of queries [B, H, 1, D]."""
        mask = seen.masks[self.window]
        if mask.dtype == torch.int32:
            return attend_runs(query, cached.keys, cached.values, mask, self.window, self.scale)
        return attend_folded(query, cached.keys, cached.values, mask, self.scale, self.softcap)


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part; where it is gated, `up` gives the gate and what it multiplies, side by side."""

    up: Map
    activate: Map
    down: Map
    gated: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return [B, H] for [B, H]."""
        if not self.gated:
            return self.down(self.activate(self.up(x)))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(self.activate(gate) * value)


@dataclass(frozen=True)
class Block:
    """A layer. `norms` come before attention and feed-forward part, `inner` norms before what they give is added, `outer`
    norms after it; `parallel`: both read the same."""

    attention: Attention
    feed_forward: FeedForward
    norms: tuple[Map | None, Map | None] = (None, None)
    inner: tuple[Map | None, Map | None] = (None, None)
    outer: tuple[Map | None, Map | None] = (None, None)
    parallel: bool = False

    def __call__(self, x: Tensor, cached: Cached, seen: Seen) -> Tensor:
        """Return [B, H] for [B, H]."""
        if self.parallel:
            first, second = self.norms
            normed = apply(first, x)
            read = normed if second is None else second(x)
            return self.feed_forward(read) + self.attention(normed, cached, seen) + x
        attended = apply(self.inner[0], self.attention(apply(self.norms[0], x), cached, seen))
        x = apply(self.outer[0], x + attended)
        return apply(self.outer[1], x + apply(self.inner[1], self.feed_forward(apply(self.norms[1], x))))


def apply(change: Map | None, x: Tensor) -> Tensor:
    """Return `x` changed, or as it is."""
    return x if change is None else change(x)


@dataclass(frozen=True)
class Reader:
    """A model that reads one token per row."""

    embed: Callable[[Tensor, Tensor], Tensor]
    blocks: list[Block]
    head: Map
    rotary: Rotary | None = None
    windows: frozenset[int | None] = field(default_factory=frozenset)

    def __call__(
        self, tokens: Tensor, positions: Tensor, cached: list[Cached], slot: Tensor, masks: dict[int | None, Tensor]
    ) -> Tensor:
        """Return the logits [B, V] after tokens [B] at positions [B], which go to the slot `slot` [1] of the cache."""
        seen = Seen(slot, masks, None if self.rotary is None else self.rotary.at(positions))
        x = self.embed(tokens, positions)
        for block, own in zip(self.blocks, cached, strict=True):
            x = block(x, own, seen)
        return self.head(x)
