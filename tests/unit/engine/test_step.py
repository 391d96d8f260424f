"""Ending updates, against AdamW of plain torch that clips, and that never sees what is left out."""

import copy
import math

import pytest
import torch
from support.precision_marks import fp16_case
from torch import nn

from rlhf.config.derive import Batches
from rlhf.engine.save import whole_weight
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, set_rates, training_engine
from rlhf.models.load import new_policy
from rlhf.models.lora import is_adapter
from rlhf.runtime.compat import deepspeed as compat
from rlhf.runtime.distributed import start

pytestmark = pytest.mark.rounding

PLAN = Batches(ranks=1, per_rank=4, micro=2, accumulation=2)
ZEROS = ("0", "1", "2", "3", "2-offload", "3-offload")
RATE, CLIP = 0.02, 0.3
# Losses of this size give gradients that neither overflow in fp16 at a loss scale of 2**16 nor vanish.
SMALL = 0.02


def learning(config, plan=PLAN):
    return TrainingSpec(
        config.sft, plan, config.zero, config.lora, config.sft.learning_rate, config.sft.weight_decay, False
    )


def make_pair(make_config, zero, dtype, clip=CLIP):
    """Two small engines, and models, optimisers of plain torch in float32 that start alike."""
    config = make_config(
        f"zero={zero!r}", f"precision={dtype}", "zero.stage3_param_persistence_threshold=0", f"sft.max_grad_norm={clip}",
        f"sft.learning_rate={RATE}", "sft.weight_decay=0.1", "sft.betas=[0.8,0.95]", "sft.eps=1.0e-7",
    )  # fmt: skip
    start(config)
    engines, models, optimizers = [], [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(precision(dtype))
        plain = copy.deepcopy(model).float()
        matrices = [p for p in plain.parameters() if p.ndim == 2]
        vectors = [p for p in plain.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        engines.append(training_engine(model, config, learning(config)))
        set_rates(engines[-1], 1.0)
        models.append(plain)
        optimizers.append(torch.optim.AdamW(groups, lr=RATE, betas=(0.8, 0.95), eps=1e-7))
    return engines, models, optimizers


def precision(dtype):
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def rows(number):
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(number)).bfloat16().float()


def loss_of(model, inputs):
    """Sum of squared errors: large gradients for the first model, which are clipped, small ones for the second."""
    return ((model(inputs).float() - 1.0) ** 2).sum()


def update(engines, number, sizes=(1.0, SMALL), infinite=None):
    """Two micro-batches of two rows and the end of the update; the loss of engine `infinite` is so in the last one."""
    inputs = rows(number)
    for half in (0, 1):
        for place, (engine, size) in enumerate(zip(engines, sizes, strict=True)):
            mine = inputs[2 * half : 2 * half + 2].to(next(engine.module.parameters()).dtype)
            factor = math.inf if half == 1 and place == infinite else size
            backward(engine, factor * loss_of(engine, mine), 4.0)
            accumulate(engine)
    return optimizer_step(*engines)


def plain_update(models, optimizers, number, sizes=(1.0, SMALL)):
    """The same in plain torch: norms before clipping."""
    norms = []
    for model, optimizer, size in zip(models, optimizers, sizes, strict=True):
        optimizer.zero_grad()
        (size * loss_of(model, rows(number)) / 4.0).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
    return norms


def weights(engine):
    return [whole_weight(parameter).clone() for parameter in engine.module.parameters()]


def moments(engine):
    """Everything the optimiser remembers."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return [torch.as_tensor(value).clone() for state in optimizer.state.values() for value in state.values()]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def close(engine, model, tolerance):
    pairs = zip(weights(engine), model.parameters(), strict=True)
    return max(float((mine.float() - plain.detach()).abs().max()) for mine, plain in pairs) <= tolerance


@pytest.mark.parametrize("zero", ZEROS)
def test_updates_in_fp32_are_those_of_adamw_with_clipping(make_config, zero):
    engines, models, optimizers = make_pair(make_config, zero, "fp32")
    before = [weights(engine) for engine in engines]
    for number in range(3):
        norms = update(engines, number)
        expected = plain_update(models, optimizers, number)
        assert expected[0] > CLIP > expected[1]  # one is clipped, the other is not
        assert norms == pytest.approx(expected, rel=1e-4)
        assert all(close(engine, model, 1e-6) for engine, model in zip(engines, models, strict=True))
    for engine, old in zip(engines, before, strict=True):
        assert not any(torch.equal(a, b) for a, b in zip(weights(engine), old, strict=True))


@pytest.mark.parametrize("zero", ZEROS)
def test_an_update_that_is_not_finite_never_happened_in_fp32(make_config, zero):
    engines, models, optimizers = make_pair(make_config, zero, "fp32")
    for number, infinite in enumerate((None, 0, None, 1, 1, None, None)):
        old, remembered = [weights(engine) for engine in engines], [moments(engine) for engine in engines]
        norms = update(engines, number, infinite=infinite)
        if infinite is None:
            assert norms == pytest.approx(plain_update(models, optimizers, number), rel=1e-4)
            assert all(close(engine, model, 1e-6) for engine, model in zip(engines, models, strict=True))
            continue
        assert [math.isnan(norm) for norm in norms] == [infinite == 0, infinite == 1]
        assert all(same(weights(engine), kept) for engine, kept in zip(engines, old, strict=True))
        assert all(same(moments(engine), kept) for engine, kept in zip(engines, remembered, strict=True))


@pytest.mark.parametrize("zero", ("0", "3"))
def test_the_first_update_may_be_the_one_that_is_left_out(make_config, zero):
    engines, models, optimizers = make_pair(make_config, zero, "fp32")
    assert [math.isnan(norm) for norm in update(engines, 0, infinite=1)] == [False, True]
    assert update(engines, 1) == pytest.approx(plain_update(models, optimizers, 1), rel=1e-4)
    assert all(close(engine, model, 1e-6) for engine, model in zip(engines, models, strict=True))


def test_a_gradient_of_nan_is_left_out_too(make_config):
    engines, *_ = make_pair(make_config, "2", "fp32")
    old = [weights(engine) for engine in engines]
    norms = update(engines, 0, sizes=(math.nan, SMALL))
    assert math.isnan(norms[0]) and math.isfinite(norms[1])
    assert all(same(weights(engine), kept) for engine, kept in zip(engines, old, strict=True))


@pytest.mark.parametrize("zero", ZEROS[:4])
@pytest.mark.parametrize("dtype", ("bf16", fp16_case("fp16")))
def test_updates_in_half_precision_follow_adamw(make_config, zero, dtype):
    """The loss scale starts at 2**16: small losses."""
    engines, models, optimizers = make_pair(make_config, zero, dtype)
    sizes = (0.1, SMALL)
    for number in range(3):
        old = [weights(engine) for engine in engines]
        norms = update(engines, number, sizes)
        assert norms == pytest.approx(plain_update(models, optimizers, number, sizes), rel=0.02)
        assert not any(same(weights(engine), kept) for engine, kept in zip(engines, old, strict=True))
        # Two units in the last place of a weight near 1; the three updates move it by 0.06.
        tolerance = {"bf16": 2**-7, "fp16": 2**-9}[dtype]
        assert all(close(engine, model, tolerance) for engine, model in zip(engines, models, strict=True))


@pytest.mark.parametrize("zero", ZEROS[:4])
@pytest.mark.parametrize("dtype", ("bf16", fp16_case("fp16")))
def test_an_update_that_is_not_finite_never_happened_in_half_precision(make_config, zero, dtype):
    engines, *_ = make_pair(make_config, zero, dtype)
    twins, *_ = make_pair(make_config, zero, dtype)  # they never see what is left out
    sizes = (0.1, SMALL)
    for number, infinite in enumerate((None, 0, None, 1, None)):
        old, remembered = [weights(engine) for engine in engines], [moments(engine) for engine in engines]
        norms = update(engines, number, sizes, infinite)
        if infinite is None:
            expected = update(twins, number, sizes)
            # The loss scale may be half the twin's: the smallest gradients of fp16 round otherwise.
            assert norms == pytest.approx(expected, rel=1e-6 if dtype == "bf16" else 1e-3)
            for engine, twin in zip(engines, twins, strict=True):
                for mine, plain in zip(weights(engine), weights(twin), strict=True):
                    assert torch.allclose(mine.float(), plain.float(), rtol=0, atol=0 if dtype == "bf16" else 2**-9)
            continue
        assert [math.isnan(norm) for norm in norms] == [infinite == 0, infinite == 1]
        assert all(same(weights(engine), kept) for engine, kept in zip(engines, old, strict=True))
        assert all(same(moments(engine), kept) for engine, kept in zip(engines, remembered, strict=True))


@pytest.mark.parametrize("zero", ZEROS[:4])
def test_adapters_have_a_learning_rate_of_their_own(make_config, tokenizer, zero):
    """AdamW's first step moves the weight with the largest gradient by the learning rate."""
    config = make_config(
        "lora=r8", "lora.only=false", "lora.learning_rate=5.0e-3", "sft.learning_rate=1.0e-3", "sft.eps=1.0e-12",
        "sft.weight_decay=0.0", "sft.max_grad_norm=1e9", f"zero={zero!r}", "zero.stage3_param_persistence_threshold=0",
    )  # fmt: skip
    start(config)
    plan = Batches(ranks=1, per_rank=1, micro=1, accumulation=1)
    engine = training_engine(new_policy(config.model, config, tokenizer, config.zero, 0.0), config, learning(config, plan))
    assert {group["peak"] for group in engine.optimizer.param_groups} == {1e-3, 5e-3}
    set_rates(engine, 0.5)
    rates = {group["peak"]: group["lr"] for group in engine.optimizer.param_groups}
    assert rates == {1e-3: 0.5e-3, 5e-3: 2.5e-3}
    names = [name for name, _ in engine.module.named_parameters()]
    before = dict(zip(names, weights(engine), strict=True))
    ids = torch.arange(2, 22)[None]
    logits = engine(input_ids=ids, use_cache=False).logits
    backward(engine, nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"), 19.0)
    optimizer_step(engine)
    moved = {name: float((after - before[name]).abs().max()) for name, after in zip(names, weights(engine), strict=True)}
    adapters = [change for name, change in moved.items() if is_adapter(name) and ".lora_B." in name]
    others = [change for name, change in moved.items() if not is_adapter(name)]
    assert max(adapters) == pytest.approx(2.5e-3, rel=1e-3) and min(adapters) > 1e-3
    assert max(others) == pytest.approx(0.5e-3, rel=1e-3)


def test_without_a_rate_of_their_own_adapters_have_the_stages(make_config, tokenizer):
    config = make_config("lora=r8", "sft.learning_rate=1.0e-3")
    start(config)
    engine = training_engine(new_policy(config.model, config, tokenizer, config.zero, 0.0), config, learning(config))
    assert {group["peak"] for group in engine.optimizer.param_groups} == {1e-3}


@pytest.mark.parametrize("clip", [CLIP, 1e-3, 1e3])
def test_a_norm_is_measured_once_and_clips_as_deepspeeds_own_to_the_bit(make_config, monkeypatch, clip):
    (engines, *_), (others, *_) = (make_pair(make_config, "0", "fp32", clip) for _ in range(2))
    for number in range(3):
        with monkeypatch.context() as patch:
            patch.setattr("deepspeed.runtime.engine.clip_grad_norm_", None)  # which no step calls
            norms = update(engines, number)
        with monkeypatch.context() as patch:
            patch.setattr(compat, "clip_gradient", lambda engine, gradient: type(engine).clip_fp32_gradients(engine))
            assert update(others, number) == norms
    weights = ([whole_weight(p) for engine in pair for p in engine.module.parameters()] for pair in (engines, others))
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
