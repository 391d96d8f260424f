"""Forward passes over prompts and responses: [B, T] sequences whose last R columns are the responses, with padding before,
between and after, which `packing` (sft.packing, reward.packing, ppo.packing) takes out before a model reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.logprobs import token_logprobs
from rlhf.models.attention import takes_packed
from rlhf.models.heads import takes_positions


@dataclass(frozen=True)
class PackedInputs:
    """Sequences as a model reads them: the `inputs` of its forward pass, and of each of the [B, T] tokens the index among
    the outputs, flattened (`slots`; of padding nothing that counts)."""

    inputs: dict[str, Tensor]
    slots: Tensor


def pack_inputs(model: Any, ids: Tensor, mask: Tensor, packing: str) -> PackedInputs:
    """Arrange sequences as a model reads them: one after another in a single row (`packed`, if the model can read that);
    prompt and response together and all padding after them (`length`); or as they are (`none`)."""
    shape: tuple[int, ...]
    rows, order = torch.arange(len(ids), device=ids.device)[:, None], mask.cumsum(1) - 1
    in_a_row = packing == "packed" and takes_packed(model)
    if in_a_row:
        lengths = mask.sum(1, keepdim=True)
        slots, shape = lengths.cumsum(0) - lengths + order, (1, int(lengths.sum()))
    elif packing == "none":
        slots, shape = rows * mask.size(1) + torch.arange(mask.size(1), device=ids.device), tuple(mask.shape)
    else:
        longest = int(mask.sum(1).max())
        slots, shape = rows * longest + order, (len(ids), longest)

    real = mask.flatten().nonzero().squeeze(1)
    taken = slots.flatten()[real]

    def placed(values: Tensor) -> Tensor:
        return values.new_zeros(shape[0] * shape[1]).index_copy(0, taken, values.flatten()[real]).view(shape)

    inputs = {"input_ids": placed(ids), "attention_mask": placed(mask)}
    if takes_positions(model):
        inputs["position_ids"] = placed(order)
    if in_a_row:
        inputs["attention_mask"] = lengths.cpu().view(1, 1, 1, -1)  # what models/attention.py knows a row by
    return PackedInputs(inputs, slots)


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
    read, indices = pack_inputs(engine, ids, mask, packing), response_positions(mask, responses, packing)
    before = (read.slots[:, -responses:] - 1).flatten()[indices]
    tokens = (ids * mask)[:, -responses:].flatten()[indices]
    found = predict_tokens(engine, read.inputs, before, tokens, temperature, entropies, entropy_learns)
    logprobs, entropy = (unpack_outputs(column, indices, mask[:, -responses:]) for column in found)
    return logprobs, entropy


def target_logprobs(engine: Any, ids: Tensor, mask: Tensor, targets: Tensor, packing: str = "packed") -> Tensor:
    """Return the log-probabilities, at temperature 1, of the tokens of right-padded sequences [B, T] where `targets` [B, T]
    is 1, and 0 elsewhere: [B, T] in float32 and nats. No first token may be a target. Logits are computed for the targets
    only, or with packing `none` for all tokens."""
    read = pack_inputs(engine, ids, mask, packing)
    wanted = targets if packing != "none" else torch.ones_like(targets).index_fill_(1, targets.new_zeros(1), 0)
    indices = wanted.flatten().nonzero().squeeze(1)
    before, tokens = read.slots.flatten()[indices] - 1, (ids * mask).flatten()[indices]
    logprobs, _ = predict_tokens(engine, read.inputs, before, tokens, 1.0, entropies=False)
    return unpack_outputs(logprobs, indices, targets)


def predict_tokens(
    engine: Any,
    inputs: dict[str, Tensor],
    before: Tensor,
    tokens: Tensor,
    temperature: float,
    entropies: bool,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of `tokens` [A] and the entropies of their distributions, [A] in float32 and nats, from
    the outputs at `before` [A], indices among the inputs' tokens, flattened."""
    keep: int | Tensor = before
    kept = None
    if inputs["attention_mask"].ndim == 2:  # the last columns of a rectangle [B, T], and the indices among them
        width = inputs["input_ids"].size(1)
        first = int((before % width).min())
        keep, kept = width - first, before // width * (width - first) + before % width - first
    logits = engine(**inputs, use_cache=False, logits_to_keep=keep).logits
    return token_logprobs(logits, tokens, temperature, kept, entropies, entropy_learns)


def response_values(engine: Any, ids: Tensor, mask: Tensor, responses: int, packing: str = "packed") -> Tensor:
    """Return the critic's value of the state before each response token, [B, R] in float32."""
    read, indices = pack_inputs(engine, ids, mask, packing), response_positions(mask, responses, packing)
    outputs: Tensor = engine(**read.inputs)
    before = (read.slots[:, -responses:] - 1).flatten()[indices]
    return unpack_outputs(outputs.flatten()[before], indices, mask[:, -responses:])


def response_scores(engine: Any, ids: Tensor, mask: Tensor, packing: str = "packed") -> Tensor:
    """Return the reward model's score at each sequence's last real token, [B] in float32."""
    read = pack_inputs(engine, ids, mask, packing)
    outputs: Tensor = engine(**read.inputs)
    return outputs.flatten()[(read.slots * mask).amax(1)]


def response_positions(mask: Tensor, responses: int, packing: str) -> Tensor:
    """Return the indices among [B, R], flattened, of what is computed: the response tokens, or everything with packing
    `none`."""
    actions = mask[:, -responses:]
    return (torch.ones_like(actions) if packing == "none" else actions).flatten().nonzero().squeeze(1)


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
