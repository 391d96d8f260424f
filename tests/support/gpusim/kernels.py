"""Kernels of CUDA builds which CPU builds lack, most of them of attention: what each computes, and its conditions.

Read from torch 2.11 and 2.13: torch/nn/attention/varlen.py and, under aten/src/ATen/native/transformers/cuda, attention.cu
and flash_attn/flash_api.cpp.
"""

from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from support.gpusim.tensors import GpuError

HALF = torch.float16, torch.bfloat16


def check_heads(name, q, k, v):
    """Refuse formats and head sizes that flash attention does not take."""
    if not (q.dtype == k.dtype == v.dtype and q.dtype in HALF):
        raise GpuError(f"{name} takes tensors of one half precision, not {q.dtype}, {k.dtype}, {v.dtype}")
    if q.size(-1) % 8 or q.size(-1) > 256:
        raise GpuError(f"{name} takes heads of a multiple of 8 elements up to 256, not {q.size(-1)}")
    if q.size(-2) % k.size(-2) or k.size(-2) != v.size(-2):
        raise GpuError(f"{name}: {q.size(-2)} heads do not share {k.size(-2)} keys and {v.size(-2)} values evenly")
    if any(part.stride(-1) != 1 for part in (q, k, v)):
        raise GpuError(f"{name}: the elements of a head do not lie side by side")


def check_boundaries(name, *boundaries):
    """Refuse boundaries that are not contiguous 32-bit integers."""
    if any(part.dtype != torch.int32 or not part.is_contiguous() for part in boundaries):
        raise GpuError(f"{name}: boundaries are not contiguous 32-bit integers")


def seen_by(queries, keys, left, right):
    """Return the mask [Q, K] of a window of `left` keys before each query and `right` after it (-1: all), where the last
    query is beside the last key."""
    mask = torch.ones(queries, keys, dtype=torch.bool)
    shift = keys - queries
    if right >= 0:
        mask = mask.tril(shift + right)
    return mask.triu(shift - left) if left >= 0 else mask


def attend(q, k, v, mask, scale):
    """Compute attention [Q, H, D] of one sequence's queries [Q, H, D], keys and values [K, H', D]."""
    parts = [part.transpose(0, 1)[None] for part in (q, k, v)]
    found = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=q.size(1) != k.size(1))
    return found[0].transpose(0, 1)


def varlen_attention(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, window=None, *rest, **options):
    """torch.nn.attention.varlen's operator: sequences [N, H, D] one after another, between boundaries."""
    check_heads("varlen_attn", q, k, v)
    check_boundaries("varlen_attn", cu_q, cu_k)
    ends, out = cu_q.tolist(), torch.empty_like(q)
    if q.size(1) != k.size(1):
        raise GpuError("varlen_attn takes no grouped heads in torch 2.11")
    if ends != cu_k.tolist() or ends[-1] != q.size(0) or max_q != max(b - a for a, b in pairwise(ends)):
        raise GpuError("varlen_attn: boundaries do not fill the row")
    left, right = window or (-1, -1)
    for start, end in pairwise(ends):
        mask = seen_by(end - start, end - start, left, 0 if is_causal else right)
        out[start:end] = attend(q[start:end], k[start:end], v[start:end], mask, scale)
    return out, torch.empty(q.size(1), q.size(0)), torch.zeros(2, dtype=torch.uint64)


def flash_attention(q, k, v, cu_q, cu_k, max_q, max_k, dropout, is_causal, debug, *, scale=None, window_size_left=None,
                    window_size_right=None, seqused_k=None, **options):  # fmt: skip
    """aten's operator as a cache is read: row b's queries are q[cu_q[b] : cu_q[b + 1]], its keys the seqused_k[b] from
    k[cu_k[b]] on."""
    check_heads("_flash_attention_forward", q, k, v)
    check_boundaries("_flash_attention_forward", cu_q, cu_k, seqused_k)
    rows = cu_q.numel() - 1
    if cu_k.numel() != rows + 1 or seqused_k.numel() != rows:
        raise GpuError("_flash_attention_forward: as many rows of queries and of keys")
    left, right = (-1 if size is None else size for size in (window_size_left, window_size_right))
    out, places = torch.empty_like(q), cu_q.tolist()
    for row, (start, held) in enumerate(zip(cu_k.tolist(), seqused_k.tolist(), strict=False)):
        first, last = places[row], places[row + 1]
        if last - first > max_q or not 0 < held <= max_k or start < 0 or start + held > k.size(0):
            raise GpuError(f"_flash_attention_forward: row {row} reads keys {start} to {start + held} of {k.size(0)}")
        mask = seen_by(last - first, held, left, 0 if is_causal else right)
        keys, values = (part[start : start + held] for part in (k, v))
        out[first:last] = attend(q[first:last], keys, values, mask, scale)
    return out, torch.empty(q.size(1), q.size(0)), torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def log_softmax(x, dim, to_float):
    """aten's operator, which on a GPU reads half precision and writes float32."""
    return torch.log_softmax(x, dim, dtype=torch.float32 if to_float else None)


KERNELS = {
    "aten._log_softmax.default": log_softmax,
    "torch_attn._varlen_attn.default": varlen_attention,
    "aten._flash_attention_forward.default": flash_attention,
}
