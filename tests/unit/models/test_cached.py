"""Attention of one new token per row over a cache: the kernel is asked for what the mask shows, and heads share keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.models import cached
from rlhf.models.cached import Runs, SlotMask, attend_folded, attend_runs
from rlhf.rollout.hybrid.cache import SlotLayer

HEADS, SHARED, WIDTH, ROWS, SLOTS = 6, 2, 8, 5, 24


def written_out(query, key, value, mask, scale, softcap=None):
    """Attention as its formula says, each head with keys of its own."""
    key, value = (part.repeat_interleave(query.size(1) // part.size(1), 1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (WIDTH**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def stand_in(q, k, v, queries, starts, most, slots, dropout, causal, debug, *, scale, window_size_left, window_size_right,
             seqused_k):  # fmt: skip
    """The kernel's contract, row by row: q [B, H, D], k and v [slots of all rows, K, D]."""
    assert (most, dropout, causal, debug) == (1, 0.0, False, False) and queries.tolist() == list(range(len(q) + 1))
    assert starts.is_contiguous() and seqused_k.is_contiguous() and starts.dtype == seqused_k.dtype == torch.int32
    found = []
    for row, (start, held) in enumerate(zip(starts.tolist(), seqused_k.tolist(), strict=False)):
        first = start if window_size_left < 0 else max(start, start + held - 1 - window_size_left)
        keys, values = (part[first : start + held].transpose(0, 1)[None] for part in (k, v))
        assert held <= slots and keys.size(2) > 0
        found.append(written_out(q[row, None, :, None], keys, values, torch.tensor(True), scale)[0])
    return (torch.stack(found)[:, 0], None)


@pytest.fixture(scope="module")
def drawn():
    """Queries, and a cache of more rows and slots than a step sees, stored slot by slot."""
    draw = torch.Generator().manual_seed(0)
    whole = [torch.randn(ROWS + 2, SLOTS, SHARED, WIDTH, generator=draw).transpose(1, 2) for _ in range(2)]
    return torch.randn(ROWS, HEADS, 1, WIDTH, generator=draw), *whole


@pytest.mark.parametrize("window", [None, 3])
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=ROWS), steps=st.integers(1, 8), data=st.data())
def test_the_kernel_sees_what_the_mask_shows(drawn, window, lengths, steps, data):
    query, keys, values = drawn
    shown, runs = (kind(ROWS + 2, SLOTS, torch.device("cpu")) for kind in (SlotMask, Runs))
    place, size = torch.tensor([9]), ROWS
    for held in (shown, runs):
        held.begin(torch.tensor(lengths), 9, size)
    for step in range(steps):
        if step == 1 and size > 1:
            smaller = data.draw(st.integers(1, size - 1))
            moved = data.draw(st.lists(st.integers(smaller, size - 1), max_size=smaller, unique=True))
            for held in (shown, runs):
                held.move(torch.tensor(moved, dtype=torch.long), torch.arange(len(moved)))
            size = smaller
        for held in (shown, runs):
            held.add(size, place)
        place += 1
        slots = int(place)
        seen = [part[:size, :, :slots] for part in (keys, values)]
        all_held = shown.seen(size, slots) == 0
        assert runs.seen(size, slots)[0, 0, cached.LENGTHS, :-1].tolist() == all_held.sum((1, 2, 3)).tolist()
        mask = shown.within(window, size, slots, place - 1) == 0
        wanted = written_out(query[:size], *seen, mask, 0.3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cached, "kernel", stand_in)
            found = attend_runs(query[:size], *seen, runs.seen(size, slots), window, 0.3)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads", [HEADS, SHARED])
def test_heads_that_share_keys_need_no_copies_of_them(drawn, softcap, heads):
    query, keys, values = drawn
    query, seen = query[:, :heads], [part[:ROWS] for part in (keys, values)]
    mask = torch.rand(ROWS, 1, 1, SLOTS, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    found = attend_folded(query, *seen, mask, 0.3, softcap)
    torch.testing.assert_close(found, written_out(query, *seen, mask, 0.3, softcap), rtol=1e-5, atol=1e-6)


def test_a_layer_stores_what_is_new_in_the_slot_that_is_named():
    layer = SlotLayer(max_cache_len=4)
    layer.keys, layer.values, layer.place = torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 4, 3), torch.tensor([2])
    keys, values = layer.update(torch.ones(2, 1, 1, 3), torch.full((2, 1, 1, 3), 5.0))
    assert keys[:, :, 2].eq(1).all() and values[:, :, 2].eq(5).all() and keys.sum() == 6 and values.sum() == 30


def off_by_one(q, k, v, queries, starts, *rest, **options):
    return stand_in(q, k, v, queries, starts + 1, *rest, **options)


def refused(*_, **__):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(("kernel", "agrees"), [(stand_in, True), (off_by_one, False), (refused, False)])
def test_a_kernel_that_gives_other_numbers_is_not_used(monkeypatch, recwarn, kernel, agrees):
    monkeypatch.setattr(cached, "kernel", kernel)
    cached.kernel_agrees.cache_clear()
    assert cached.kernel_agrees(torch.device("cpu"), torch.float32, HEADS, SHARED, WIDTH) == agrees
    assert [str(warning.message).partition(":")[0] for warning in recwarn] == [
        "attention over the cache is read through a mask, slower"
    ] * (not agrees)
    cached.kernel_agrees.cache_clear()
