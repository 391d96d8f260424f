"""An engine that is put aside holds nothing on its device, and comes back as it was."""

import pytest
import torch
from torch import nn

from rlhf.config.derive import Batches
from rlhf.engine.offload import PIECE, OffloadedEngine, split_into_pieces, storages
from rlhf.engine.state import engine_state
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, frozen_engine, release, set_rates, training_engine
from rlhf.planner.host import rounds_pinned
from rlhf.runtime.compat.deepspeed import local_shard
from rlhf.runtime.compat.torch import take_pinned_memory_exactly
from rlhf.runtime.distributed import start

PLAN = Batches(ranks=1, per_rank=4, micro=2, accumulation=2)
KINDS = pytest.mark.parametrize(
    ("zero", "precision"), [(zero, precision) for zero in ("0", "1", "2", "3") for precision in ("fp32", "bf16")]
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def make_engine(make_config):
    """A small model, some of whose shards stay shards at stage 3; it learns or is frozen."""

    def make(zero, precision, frozen=False):
        config = make_config(f"zero={zero!r}", f"precision={precision}", "zero.stage3_param_persistence_threshold=8")
        start(config)
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Linear(4, 1)).to(DTYPES[precision])
        learning = TrainingSpec(config.sft, PLAN, config.zero, config.lora, 0.05, 0.1, checkpointing=False)
        made = frozen_engine(model, config, config.zero) if frozen else training_engine(model, config, learning)
        engines.append(made)
        return made

    engines = []
    yield make
    release(*engines)


def inputs(engine, seed):
    drawn = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    return drawn.to(next(engine.module.parameters()).dtype)


def update(engine, number):
    set_rates(engine, 1.0)
    engine.train()
    for half in inputs(engine, number).split(2):
        backward(engine, engine(half).float().square().sum(), 4.0)
        accumulate(engine)
    return optimizer_step(engine)


@KINDS
def test_an_engine_that_was_aside_goes_on_as_if_it_had_not_been(make_engine, zero, precision):
    plain, moved = make_engine(zero, precision), make_engine(zero, precision)
    aside = OffloadedEngine(moved, frozen=False)
    for number in range(3):  # the first time there are no moments yet
        aside.to_host()
        aside.to_device()
        assert update(plain, number) == update(moved, number)
    expected, found = engine_state(plain), engine_state(moved)
    assert expected.keys() == found.keys() and any(name.startswith("moment/") for name in found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@KINDS
def test_nothing_is_left_on_the_device(make_engine, zero, precision):
    engine = make_engine(zero, precision)
    update(engine, 0)
    everything = sum(storage.nbytes() for storage in storages(engine, frozen=False))
    weights, size = 32 + 8 + 32 + 4 + 4 + 1, 4 if precision == "fp32" else 2
    masters = 0 if (zero, precision) == ("0", "fp32") else 4
    assert everything >= weights * (size + masters + 8)
    aside = OffloadedEngine(engine, frozen=False)
    aside.to_host()
    assert storages(engine, frozen=False) == []
    with pytest.raises(RuntimeError, match="in host memory"):
        engine(inputs(engine, 0))
    aside.to_device()
    assert sum(storage.nbytes() for storage in storages(engine, frozen=False)) == everything


@KINDS
def test_a_frozen_engine_is_copied_once(make_engine, zero, precision, monkeypatch):
    from rlhf.engine import offload as module

    engine, copied, plain = make_engine(zero, precision, frozen=True), [], module.copy_to_host
    monkeypatch.setattr(
        module, "copy_to_host", lambda storage, former: copied.append(storage.nbytes()) or plain(storage, former)
    )
    before = [local_shard(parameter).clone() for parameter in engine.module.parameters()]
    with torch.no_grad():
        expected = engine(inputs(engine, 0))
    aside = OffloadedEngine(engine, frozen=True)
    for _ in range(3):
        aside.to_host()
        aside.to_host()  # which changes nothing
        assert storages(engine, frozen=True) == []
        aside.to_device()
        aside.to_device()
        with torch.no_grad():
            assert torch.equal(engine(inputs(engine, 0)), expected)
    assert all(torch.equal(old, local_shard(new)) for old, new in zip(before, engine.module.parameters(), strict=True))
    assert 0 < sum(copied) <= 2 * sum(p.numel() * p.element_size() for p in before)


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, 13 * PIECE + 5])
def test_copies_are_of_sizes_that_pinned_memory_has(size):
    whole = torch.zeros(size, dtype=torch.uint8)
    *pieces, last = split_into_pieces(whole.untyped_storage())
    assert sum(map(len, pieces)) + len(last) == size
    assert all(len(piece).bit_count() == 1 for piece in pieces) and (len(last) < PIECE or len(last).bit_count() == 1)
    last[-1] = 7
    assert whole[-1] == 7


EXACT = pytest.mark.skipif(rounds_pinned(), reason="torch before 2.13 rounds all pinned memory")


@EXACT
@pytest.mark.parametrize("given", ["", "max_split_size_mb:512"])
def test_large_pinned_memory_is_taken_exactly_and_not_kept_for_reuse(given):
    before = torch._C._accelerator_getAllocatorSettings()
    try:
        torch._C._accelerator_setAllocatorSettings(given)
        take_pinned_memory_exactly()
        told = dict(part.split(":") for part in torch._C._accelerator_getAllocatorSettings().split(","))
        assert told["pinned_max_round_threshold_mb"] == told["pinned_max_cached_size_mb"]
        assert ("max_split_size_mb" in told) == bool(given)
    finally:
        torch._C._accelerator_setAllocatorSettings(before)


@EXACT
def test_a_users_own_threshold_stays(monkeypatch):
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: "pinned_max_cached_size_mb:1")
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", pytest.fail)
    take_pinned_memory_exactly()
