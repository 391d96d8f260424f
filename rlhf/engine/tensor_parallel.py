"""A model's layers shared among a group of ranks: each holds some heads and some columns of every block (arXiv 1909.08053,
section 3), and what is before and after the blocks whole. Filled from a model that ZeRO stage 3 shards, block by block."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.family import LayerNames
from rlhf.models.lora import adapter_names, base_model, is_adapter, merge_lora_weight, plain_name

# What attention modules call the numbers of their heads, and GPT-2 the width of its queries.
COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "split_size")


@dataclass(frozen=True)
class Share:
    """Which part of each layer a rank holds: number `index` of `count`, all of them in `group`."""

    index: int
    count: int
    group: Any


class RowLinear(nn.Linear):
    """A linear layer [O, I / count] whose ranks hold different inputs: their products are summed, the bias added once."""

    group: Any = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs [..., O], the same on all ranks of the group."""
        output = F.linear(input, self.weight)
        dist.all_reduce(output, group=self.group)
        return output if self.bias is None else output + self.bias


class SharedModel:
    """A copy of `model` for rollouts of which this rank holds its share; `fill` gives it the weights."""

    def __init__(self, model: Any, share: Share, device: torch.device) -> None:
        plain = base_model(model)
        self.share, self.layout = share, FAMILIES[plain.config.model_type].layer_names
        with torch.device("meta"):
            self.module: Any = type(plain)(copy.deepcopy(plain.config)).to(plain.dtype)
        for name, layer in list(self.module.named_modules()):
            if (cut := cut_direction(name, self.layout)) is not None:
                parent, _, leaf = name.rpartition(".")
                setattr(self.module.get_submodule(parent), leaf, self.cut_layer(layer, cut))
            for count in COUNTS if name.endswith(attention_of(self.layout)) else ():
                if hasattr(layer, count):
                    setattr(layer, count, getattr(layer, count) // share.count)
        self.module.to_empty(device=device)
        self.module.tie_weights()
        self.module.eval().requires_grad_(False)
        for name, buffer in plain.named_buffers():
            parent, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(plain_name(parent)), leaf, buffer)

    def cut_layer(self, layer: Any, cut: str) -> nn.Linear:
        """Return an empty linear layer of this rank's share, in place of a whole one."""
        outputs, inputs = layer.weight.T.shape if isinstance(layer, Conv1D) else layer.weight.shape
        options: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta", "dtype": layer.weight.dtype}
        if cut == "columns":
            return nn.Linear(inputs, outputs // self.share.count, **options)
        rows = RowLinear(inputs // self.share.count, outputs, **options)
        rows.group = self.share.group
        return rows

    @torch.no_grad()
    def fill(self, model: Any, scale: float | None) -> None:
        """Take the weights of the sharded model, a block at a time, with its adapters merged, times `scale`, if there is
        one. All ranks must call it."""
        plain, own = base_model(model), dict(self.module.named_parameters())
        transposed = {name for name, layer in plain.named_modules() if isinstance(layer, Conv1D)}
        for part in blocks(dict(plain.named_parameters())):
            with deepspeed.zero.GatheredParameters(list(part.values())):
                for name, parameter in part.items():
                    if is_adapter(name) or plain_name(name) not in own:
                        continue
                    weight: Tensor = parameter.detach()
                    layer = name.rpartition(".")[0]
                    flipped = layer in transposed and name.endswith(".weight")
                    if scale is not None and name.endswith(".base_layer.weight"):
                        a, b = (part[factor].detach() for factor in adapter_names(name))
                        weight = merge_lora_weight(weight, a, b, scale, flipped)
                    target = own[plain_name(name)]
                    target.copy_(self.cut(plain_name(name), weight.T if flipped and target.ndim == 2 else weight))

    def cut(self, name: str, weight: Tensor) -> Tensor:
        """Cut this rank's share out of a weight [O, I] or a bias [O]."""
        layer, _, kind = name.rpartition(".")
        cut, share = cut_direction(layer, self.layout), self.share
        if cut is None or (cut == "rows" and kind == "bias"):
            return weight
        if cut == "rows":
            return weight.chunk(share.count, dim=1)[share.index]
        parts = weight.chunk(3) if layer.endswith("c_attn") else (weight,)  # GPT-2: all queries, all keys, all values
        return torch.cat([part.chunk(share.count)[share.index] for part in parts])


def cut_direction(name: str, layout: LayerNames) -> str | None:
    """Tell how a module is cut: by `columns` (outputs), by `rows` (inputs), or not at all (None)."""
    if any(name.endswith(f".{end}") for end in (*layout.attended, *layout.wide)):
        return "columns"
    return "rows" if any(name.endswith(f".{end}") for end in (layout.mixed, layout.narrow)) else None


def attention_of(layout: LayerNames) -> str:
    """Return the ends of the names of attention modules."""
    return "." + layout.mixed.rpartition(".")[0]


def blocks(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters in parts that are gathered together: those of each block, and each of the others by itself."""
    part: dict[str, Any] = {}
    number = ""
    for name, parameter in parameters.items():
        found = next((word for word in name.split(".") if word.isdecimal()), name)
        if found != number and part:
            yield part
            part = {}
        part[name], number = parameter, found
    if part:
        yield part
