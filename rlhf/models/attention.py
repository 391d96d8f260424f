"""Attention over rows in which sequences lie one after another, without padding: each token sees its own sequence alone.

transformers' tables hold it under a name of its own, so that other models of the process stay as they are. It is the `sdpa`
of transformers with two additions. A mask may be a whole-number tensor: [1, 1, 1, S] in int64 holds the lengths of the S
sequences that fill the row [1, N], int32 holds runs of a cache (models/cached.py). And the heads of a single query share
keys without copies of them. Every family passes a mask of four dimensions on as it is, so nothing has to be remembered
between a forward pass and its recomputation. Lengths stay on the host, where attention needs them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any

import torch
import transformers
from packaging.version import parse
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from rlhf.catalog.families import FAMILIES
from rlhf.models.cached import attend_capped, attend_folded, attend_runs, kernel_agrees
from rlhf.models.heads import plain_model
from rlhf.models.neo import NAME, replace_attention, within_window
from rlhf.runtime.compat.transformers import attention_name, looks_attention_up, set_attention_name
from rlhf.runtime.device import send_numbers

Attended = tuple[Tensor, Tensor | None]
# Whether any sequence of the pass that goes on is padded; None: nobody has said so.
has_padding: ContextVar[bool | None] = ContextVar("has_padding", default=None)


def takes_packed(model: Any) -> bool:
    """Whether a model reads rows of sequences: its family is known to keep tokens apart in attention alone, and leaves
    attention to transformers' interface (BLOOM does not; GPT-Neo does with models/neo.py)."""
    plain = plain_model(model)
    return goes_through_interface(plain) and attention_name(plain) == NAME


def reads_runs(model: Any) -> bool:
    """Whether one kernel reads what the rows of a cache hold (models/cached.py)."""
    plain = plain_model(model)
    settings = plain.config.get_text_config()
    width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    weights = next(plain.parameters())
    bent = getattr(settings, "attn_logit_softcapping", None) is not None
    if bent or not takes_packed(model) or not has_kernel(weights.device, weights.dtype, width):
        return False
    heads = settings.num_attention_heads
    shared = getattr(settings, "num_key_value_heads", None) or heads
    return kernel_agrees(weights.device, weights.dtype, heads, shared, width)


def goes_through_interface(model: Any) -> bool:
    """Whether the attention of a model of one of our families is looked up in transformers' table."""
    kind = model.config.model_type
    return kind in FAMILIES and (kind == "gpt_neo" or looks_attention_up(model))


def extend_attention(model: Any) -> None:
    """Give a model this attention, if its family looks its attention up. transformers before 5.24 needs another mask for
    the other families' too, of the same values."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, padding_mask)
    if parse(transformers.__version__) < parse("5.24"):
        AttentionMaskInterface.register("eager", additive_mask)
    if goes_through_interface(model):
        set_attention_name(model, NAME)
        replace_attention(model)


@contextmanager
def known_padding(is_padded: bool) -> Iterator[None]:
    """Tell masks made meanwhile whether any sequence is padded. transformers looks at the padding mask else, for which the
    host waits for the device."""
    token = has_padding.set(is_padded)
    try:
        yield
    finally:
        has_padding.reset(token)


def padding_mask(**options: Any) -> Tensor | None:
    """Return transformers' mask for `sdpa` attention [B, 1, T, S], or None where causality says it all."""
    known: dict[bool | None, dict[str, Any]] = {
        True: {"allow_is_causal_skip": False}, False: {"attention_mask": None}, None: {}
    }  # fmt: skip
    mask: Tensor | None = sdpa_mask(**options | known[has_padding.get()])
    return mask


def additive_mask(dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """Return transformers' mask for `eager` attention [B, 1, T, S]: 0 for a token that is seen, the lowest number for
    another. It is made on the device alone: transformers before 5.24 copies a number from the host, which no CUDA graph
    may hold."""
    seen = sdpa_mask(**options | {"allow_is_causal_skip": False})
    return None if seen is None else torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Attended:
    """Call transformers' `sdpa`, [B, H, T, D] to [B, T, H, D], with `softcap` where a model has it; of rows of sequences
    if the mask holds lengths (int64), of one token over a cache if it holds runs (int32)."""
    kind, window = None if attention_mask is None else attention_mask.dtype, options.get("sliding_window")
    if attention_mask is not None and kind == torch.int64:
        return packed_attention(module, query, key, value, attention_mask, **options), None
    if attention_mask is not None and kind == torch.int32:
        return attend_runs(query, key, value, attention_mask, window, options.get("scaling")), None
    if query.size(2) == 1 and kind in (None, torch.bool) and not options.get("dropout"):
        near = attention_mask if window is None else within_window(attention_mask, 1, key.size(2), window, key.device)
        return attend_folded(query, key, value, near, options.get("scaling"), options.get("softcap")), None
    return padded_attention(module, query, key, value, attention_mask, **options)


def padded_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None = None,
    **options: Any,
) -> Attended:
    """Compute `attention` of padded sequences."""
    if softcap is None:
        attended: Attended = sdpa_attention_forward(module, query, key, value, mask, **options)
        return attended
    return capped_attention(module, query, key, value, mask, softcap, **options), None


def capped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """Compute attention of padded sequences with a `softcap`, [B, H, T, D] to [B, T, H, D]."""
    if mask is None:
        mask = causal_band(query.size(2), None, query.device)
        if query.size(2) > 1:  # the first tokens of an empty static cache
            key, value = key[:, :, : query.size(2)], value[:, :, : query.size(2)]
    groups = getattr(module, "num_key_value_groups", 1)
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    return attend_capped(query, keys, values, mask, softcap, scaling, dropout).transpose(1, 2).contiguous()


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, softcap: float | None = None, **options: Any
) -> Tensor:
    """Compute `attention` of a row of sequences of these lengths, [1, H, N, D] to [1, N, H, D]."""
    counts, window = tuple(lengths.flatten().tolist()), options.get("sliding_window")
    if softcap is None and not options.get("dropout") and has_kernel(query.device, query.dtype, query.size(-1)):
        return flash_attention(module, query, key, value, counts, window, options.get("scaling"))
    found = []
    for q, k, v in split_sequences(query, key, value, counts):
        longer = window is not None and q.size(2) > window
        mask = causal_band(q.size(2), window, query.device) if longer else None
        found.append(padded_attention(module, q, k, v, mask, softcap, **options)[0].flatten(0, 1))
    return torch.cat(found)[None]


def has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether one kernel reads sequences of many lengths: in half precision, on GPUs since Ampere, heads of usual width."""
    half = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return half and width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)


def split_sequences(query: Tensor, key: Tensor, value: Tensor, counts: tuple[int, ...]) -> Iterator[list[Tensor]]:
    """Yield queries, keys and values [S, H, T, D] of the sequences of a row; neighbours of equal length come together."""
    runs = [(length, len(list(same))) for length, same in groupby(counts)]
    widths = [length * number for length, number in runs]
    for (length, number), *parts in zip(runs, *(part.split(widths, dim=2) for part in (query, key, value)), strict=True):
        yield [part[0].unflatten(1, (number, length)).transpose(0, 1) for part in parts]


def flash_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, counts: tuple[int, ...], window: int | None, scale: float | None
) -> Tensor:
    """Compute attention of a row of sequences by one kernel, in half precision on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    groups = getattr(module, "num_key_value_groups", 1)  # torch 2.11 has no grouped heads here
    q, k, v = (part.transpose(1, 2)[0] for part in (query, repeat_kv(key, groups), repeat_kv(value, groups)))
    ends, longest = sequence_boundaries(counts, query.device), max(counts)
    # A window of W tokens: the one that looks and W - 1 before it.
    seen = (-1 if window is None or window >= longest else window - 1, 0)
    attended: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=seen)
    found: Tensor = attended[None]
    return found


@lru_cache(maxsize=8)
def sequence_boundaries(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Return where each sequence of a row begins, and where the last one ends, in tokens; made once for all layers."""
    return send_numbers((0, *accumulate(counts)), device).int()


def causal_band(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return the mask [1, 1, T, T] of the tokens that each token sees: itself and those before it, of them the last
    `window`."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return (seen if window is None else seen.triu(1 - window))[None, None]
