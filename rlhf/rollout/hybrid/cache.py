"""The key-value cache of a decode loop: of transformers' make, but a step sees some of its rows and the slots in use, and
prompts are read straight into it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from rlhf.models.lora import base_model
from rlhf.models.step.layers import Cached
from rlhf.rollout.base import check_room


class SlotLayer(StaticLayer):
    """A layer whose new keys and values go to the slot that `place` [1] names, which the decode loop moves on."""

    place: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what is new, [B, K, 1, D]; returns all that the step sees, [B, K, S, D]."""
        keys, values = self.keys, self.values
        assert keys is not None and values is not None  # they are made before the first step
        keys.index_copy_(2, self.place, key_states)
        values.index_copy_(2, self.place, value_states)
        return keys, values


class SlotCache(Cache):
    """Keys and values of `rows` rows and `slots` slots in every layer; row b's prompt ends where all others' do. The next
    token goes to the slot that `place` [1] names."""

    def __init__(self, model: Any, rows: int, slots: int, place: Tensor) -> None:
        layers, device = base_model(model).config.get_text_config().num_hidden_layers, place.device
        self.views = [SlotLayer(max_cache_len=slots) for _ in range(layers)]
        super().__init__(layers=[*self.views])
        self.rows, self.slots, self.device, self.place = rows, slots, device, place
        self.whole: list[Tensor] = []
        self.seen = (0, 0)
        self.layers_seen: list[Cached] = []

    def store(self, layer: int, read: tuple[Tensor, Tensor], target: "Target") -> None:
        """Put the keys and values [b, K, Q, D] that a layer has for prompts into the rows and slots of `target`."""
        if layer == len(self.whole):
            self.allocate(layer, read[0])
        both = self.whole[layer][target.rows, :, target.start : target.start + read[0].size(2)]
        for half, part in zip(both.chunk(2, dim=1), read, strict=True):
            half.copy_(part if target.sources is None else part.index_select(0, target.sources))

    def allocate(self, layer: int, keys: Tensor) -> None:
        """Make the tensor of a layer, [rows, 2 K, slots, D], for keys and values of the shape of a prefill's keys. On a GPU
        it is stored slot by slot, as its kernel reads it, on a CPU head by head, as its own does. Raises ConfigError, at
        the first layer, where the tensors of all layers do not fit."""
        heads, width = 2 * keys.size(1), keys.size(3)
        if layer == 0:
            check_room(self.rows, self.slots, len(self.views) * heads * width * keys.element_size(), self.device)
        view = self.views[layer]
        view.device, view.is_initialized = self.device, True
        view.place, view.cumulative_length = self.place, self.place[0]
        if self.device.type == "cuda":
            self.whole.append(keys.new_zeros(self.rows, self.slots, heads, width).transpose(1, 2))
        else:
            self.whole.append(keys.new_zeros(self.rows, heads, self.slots, width))

    def shown(self, rows: int, slots: int) -> "SlotCache":
        """Return the cache as a step sees it: the first rows and slots. The views are made once for steps of a kind."""
        if self.seen != (rows, slots):
            self.layers_seen = []
            for layer, tensor in zip(self.views, self.whole, strict=True):
                both = tensor[:rows, :, :slots]
                layer.keys, layer.values = both.chunk(2, dim=1)
                layer.max_cache_len = slots
                self.layers_seen.append(Cached(both, layer.keys, layer.values))
            self.seen = rows, slots
        return self

    def move(self, rows: Tensor, places: Tensor, slots: int) -> None:
        """Move rows to other places; slots from `slots` on hold nothing yet."""
        for tensor in self.whole:
            tensor[places, :, :slots] = tensor[rows, :, :slots]


@dataclass(frozen=True)
class Target:
    """Where the keys and values of prompts go: to these rows, from slot `start` on. Row r has those of prompt
    `sources[r]` [rows]; None: each prompt has one row."""

    rows: slice
    start: int
    sources: Tensor | None = None


class PromptLayer(DynamicLayer):
    """A layer that has read nothing before, and puts what is read now straight into the slots of another cache."""

    def __init__(self, cache: SlotCache, number: int, target: Target) -> None:
        super().__init__()
        self.cache, self.number, self.target = cache, number, target

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of prompts, [b, K, Q, D]; returns them, all that the prompts' tokens see."""
        self.cache.store(self.number, (key_states, value_states), self.target)
        return key_states, value_states


def prompt_cache(cache: SlotCache, target: Target) -> Cache:
    """Return the cache with which prompts are read so that their keys and values go to `target` in another cache."""
    return Cache(layers=[PromptLayer(cache, number, target) for number in range(len(cache.views))])
