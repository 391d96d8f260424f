"""Forward passes over prompts and responses: [B, T] sequences whose last R columns are the responses, with padding before,
between and after, which `packing` (sft.packing, reward.packing, ppo.packing) takes out before a model reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.algo.logprobs import token_logprobs
from rlhf.models.attention import takes_packed
from rlhf.models.heads import takes_positions


@dataclass(frozen=True)
class PackedInputs:
    """Sequences as a model reads them.

    Attributes:
        inputs: Those of its forward pass.
        slots: Of each of the [B, T] tokens the index among the outputs, flattened; of padding nothing that counts.
        wanted: The indices [A] of the tokens that are asked for among the last W of each sequence, [B, W] flattened.
        first: How many tokens come before the first of them in its sequence, at least.
    """

    inputs: dict[str, Tensor]
    slots: Tensor
    wanted: Tensor
    first: int


def pack_inputs(model: Any, ids: Tensor, mask: Tensor, packing: str, wanted: Tensor) -> PackedInputs:
    """Arrange sequences [B, T] as a model reads them: one after another in a single row (`packed`, if the model can read
    that); prompt and response together and all padding after them (`length`); or as they are (`none`). `wanted` [B, W] is 1
    for the tokens among the last W of each that are asked for; with `none` all are. The host waits for the device once, for
    lengths."""
    rows, order = torch.arange(len(ids), device=ids.device)[:, None], mask.cumsum(1) - 1
    in_a_row = packing == "packed" and takes_packed(model)
    lengths: list[int] = []
    if packing == "none":
        shape = mask.size(0), mask.size(1)
        slots = rows * mask.size(1) + torch.arange(mask.size(1), device=ids.device)
        indices, first = torch.arange(wanted.numel(), device=ids.device), mask.size(1) - wanted.size(1)
    else:
        lengths, count, first = count_tokens(mask, order, wanted)
        indices = torch.nonzero_static(wanted.flatten(), size=count).squeeze(1)
        if in_a_row:
            own = mask.sum(1, keepdim=True)
            slots, shape = own.cumsum(0) - own + order, (1, sum(lengths))
        else:
            slots, shape = rows * max(lengths) + order, (len(ids), max(lengths))
    size = shape[0] * shape[1]
    taken = torch.where(mask.bool(), slots, size).flatten()  # padding goes behind the end

    def place(values: Tensor) -> Tensor:
        return values.new_zeros(size + 1).index_copy_(0, taken, values.flatten())[:size].view(shape)

    inputs = {"input_ids": place(ids), "attention_mask": place(mask)}
    if takes_positions(model):
        inputs["position_ids"] = place(order)
    if in_a_row:
        inputs["attention_mask"] = torch.tensor(lengths).view(1, 1, 1, -1)  # what models/attention.py knows a row by
    return PackedInputs(inputs, slots, indices, first)


def count_tokens(mask: Tensor, order: Tensor, wanted: Tensor) -> tuple[list[int], int, int]:
    """Return the lengths of sequences [B, T] by their mask, how many tokens are wanted among their last W, [B, W], and how
    many tokens of a sequence come before the first of them, at least. `order` [B, T] numbers the tokens of a sequence."""
    before = torch.where(wanted.bool(), order[:, -wanted.size(1) :], mask.size(1)).amin(1)
    lengths, counts, firsts = torch.stack([mask.sum(1), wanted.sum(1), before]).tolist()
    return lengths, sum(counts), min(firsts)


def response_logprobs(
    engine: Any,
    ids: Tensor,
    mask: Tensor,
    responses: int,
    temperature: float,
    packing: str = "packed",
    entropies: bool = False,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the response tokens and, if asked for, the entropies of their distributions, [B, R]
    in float32 and nats. Logits are computed for the responses only."""
    wanted = mask[:, -responses:]
    return wanted_logprobs(engine, ids, mask, wanted, temperature, packing, entropies, entropy_learns)


def target_logprobs(engine: Any, ids: Tensor, mask: Tensor, targets: Tensor, packing: str = "packed") -> Tensor:
    """Return the log-probabilities, at temperature 1, of the tokens of right-padded sequences [B, T] where `targets` [B, T]
    is 1, and 0 elsewhere: [B, T] in float32 and nats. No first token may be a target. Logits are computed for the targets
    only, or with packing `none` for all tokens."""
    logprobs, _ = wanted_logprobs(engine, ids, mask, targets[:, 1:], 1.0, packing, entropies=False)
    return F.pad(logprobs, (1, 0))


def wanted_logprobs(
    engine: Any,
    ids: Tensor,
    mask: Tensor,
    wanted: Tensor,
    temperature: float,
    packing: str,
    entropies: bool,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the tokens that are wanted among the last W of each sequence and the entropies of
    their distributions, [B, W] in float32 and nats, and 0 elsewhere."""
    read, width = pack_inputs(engine, ids, mask, packing, wanted), wanted.size(1)
    before = (read.slots[:, -width:] - 1).flatten()[read.wanted]  # [A], among the outputs, flattened
    tokens = (ids * mask)[:, -width:].flatten()[read.wanted]
    keep: int | Tensor = before
    kept = None
    if read.inputs["attention_mask"].ndim == 2:  # the last columns of a rectangle [B, T], and the indices among them
        columns = read.inputs["input_ids"].size(1)
        first = read.first - 1
        keep, kept = columns - first, before // columns * (columns - first) + before % columns - first
    logits = engine(**read.inputs, use_cache=False, logits_to_keep=keep).logits
    found = token_logprobs(logits, tokens, temperature, kept, entropies, entropy_learns)
    logprobs, entropy = (unpack_outputs(column, read.wanted, wanted) for column in found)
    return logprobs, entropy


def response_values(engine: Any, ids: Tensor, mask: Tensor, responses: int, packing: str = "packed") -> Tensor:
    """Return the critic's value of the state before each response token, [B, R] in float32."""
    read = pack_inputs(engine, ids, mask, packing, mask[:, -responses:])
    outputs: Tensor = engine(**read.inputs)
    before = (read.slots[:, -responses:] - 1).flatten()[read.wanted]
    return unpack_outputs(outputs.flatten()[before], read.wanted, mask[:, -responses:])


def response_scores(engine: Any, ids: Tensor, mask: Tensor, packing: str = "packed") -> Tensor:
    """Return the reward model's score at each sequence's last real token, [B] in float32."""
    read = pack_inputs(engine, ids, mask, packing, mask)
    outputs: Tensor = engine(**read.inputs)
    return outputs.flatten()[(read.slots * mask).amax(1)]


def unpack_outputs(values: Tensor, indices: Tensor, like: Tensor) -> Tensor:
    """Return a tensor [B, R] with values [A] at their indices and 0 elsewhere."""
    return values.new_zeros(like.numel()).index_copy(0, indices, values).view_as(like)


def micro_batches(rows: Sequence[int], size: int, packing: str, *models: Any) -> list[list[int]]:
    """Split rows, the longest first, into parts of `size` at most: rows of about one length together, or, where all models
    read rows of sequences, dealt out, so that each part has about as many tokens."""
    count = -(-len(rows) // size)
    if packing == "packed" and all(takes_packed(model) for model in models):
        return [list(rows[part::count]) for part in range(count)]
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class Room:
    """What a forward pass reads at most: `rows` sequences, or, where `tokens` is a number, so many tokens: of sequences
    that lie in a row (`packed`) their own, else with the padding to the longest. `least` sequences are read together
    however long they are."""

    rows: int
    tokens: int | None = None
    packed: bool = False
    least: int = 1

    def holds(self, lengths: Sequence[int]) -> bool:
        """Tell whether sequences of these lengths fit."""
        if self.tokens is None:
            return len(lengths) <= self.rows
        tokens = sum(lengths) if self.packed else len(lengths) * max(lengths)
        return len(lengths) <= self.least or tokens <= self.tokens


def make_room(rows: int, tokens: int | None, packing: str, model: Any, least: int = 1) -> Room:
    """Return what a forward pass of a model reads at most."""
    return Room(rows, tokens, packing == "packed" and takes_packed(model), least)


def fill_passes(rows: Sequence[int], lengths: Sequence[int], room: Room) -> list[list[int]]:
    """Share rows among forward passes, each row in the first pass that has room for it."""
    passes: list[list[int]] = []
    for row in rows:
        fitting = (found for found in passes if room.holds([lengths[other] for other in (*found, row)]))
        found = next(fitting, None)
        if found is None:
            passes.append([row])
        else:
            found.append(row)
    return passes
