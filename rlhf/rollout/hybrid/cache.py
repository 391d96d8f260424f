"""The key-value cache of a decode loop: of transformers' make, but a step sees some of its rows and the slots in use."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from rlhf.models.lora import base_model
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
        self.whole: list[tuple[Tensor, Tensor]] = []
        self.seen = (0, 0)

    def store(self, read: Any, rows: Tensor, sources: Tensor, start: int) -> None:
        """Put what a prefill read into `rows`, from slot `start` on: row r has what was read as `sources[r]`."""
        if not self.whole:
            self.allocate(read.layers)
        for (keys, values), layer in zip(self.whole, read.layers, strict=True):
            end = start + layer.keys.size(2)
            keys[rows, :, start:end] = layer.keys[sources]
            values[rows, :, start:end] = layer.values[sources]

    def allocate(self, read: list[Any]) -> None:
        """Make the tensors, of the shapes that a prefill's have. Raises ConfigError where they do not fit."""
        shapes = [(layer.keys, layer.values) for layer in read]
        per_token = sum(like.size(1) * like.size(3) * like.element_size() for pair in shapes for like in pair)
        check_room(self.rows, self.slots, per_token, self.device)
        for layer, (keys, values) in zip(self.views, shapes, strict=True):
            layer.lazy_initialization(keys[:0], values[:0])
            layer.place, layer.cumulative_length = self.place, self.place[0]
            self.whole.append((self.zeros_like(keys), self.zeros_like(values)))

    def zeros_like(self, read: Tensor) -> Tensor:
        """Return a tensor [rows, heads, slots, width] for what was read: on a GPU stored slot by slot, as its kernel reads
        it, on a CPU head by head, as its own does."""
        heads, width = read.size(1), read.size(3)
        if self.device.type == "cuda":
            return read.new_zeros(self.rows, self.slots, heads, width).transpose(1, 2)
        return read.new_zeros(self.rows, heads, self.slots, width)

    def shown(self, rows: int, slots: int) -> "SlotCache":
        """Return the cache as a step sees it: the first rows and slots."""
        if self.seen != (rows, slots):
            for layer, (keys, values) in zip(self.views, self.whole, strict=True):
                layer.keys, layer.values, layer.max_cache_len = keys[:rows, :, :slots], values[:rows, :, :slots], slots
            self.seen = rows, slots
        return self

    def move(self, rows: Tensor, slots: int) -> None:
        """Move these rows to the front; slots from `slots` on hold nothing yet."""
        for tensor in (tensor for pair in self.whole for tensor in pair):
            tensor[: len(rows), :, :slots] = tensor[rows, :, :slots]
