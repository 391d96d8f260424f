"""What is kept of an engine and put back, in this or in a new one: training goes on to the last bit."""

import math
import random

import numpy as np
import pytest
import torch
from support.precision_marks import fp16_case, needs_fp16
from torch import nn

from rlhf.config.derive import Batches
from rlhf.engine.save import whole_weight
from rlhf.engine.state import engine_state, generators, restore_engine, restore_generators
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, set_rates, training_engine
from rlhf.runtime.compat.deepspeed import LOSS_SCALE
from rlhf.runtime.distributed import start

PLAN = Batches(ranks=1, per_rank=4, micro=2, accumulation=2)
KINDS = pytest.mark.parametrize(
    ("zero", "precision"),
    [
        *((zero, "fp32") for zero in ("0", "1", "2", "3", "3-offload")), ("0", "bf16"),
        fp16_case("2", "fp16"), fp16_case("3", "fp16"),
    ],
)  # fmt: skip
FEWER = pytest.mark.parametrize(
    ("zero", "precision"), [("0", "fp32"), ("2", "fp32"), ("3", "fp32"), fp16_case("3", "fp16")]
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def make_engine(make_config):
    """`make_engine(zero, precision, seed)`: a small model that drops out and decays, frozen in part; shards stay shards
    where they are large enough for it."""

    def make(zero, precision, seed=1):
        config = make_config(
            f"zero={zero!r}", f"precision={precision}", "zero.stage3_param_persistence_threshold=8",
            "zero.reduce_bucket_size=40",
            "sft.max_grad_norm=0.3",
        )  # fmt: skip
        start(config)
        torch.manual_seed(seed)
        layers = (nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
        model = nn.Sequential(*layers).to(DTYPES[precision])
        model[5].requires_grad_(False)
        learning = TrainingSpec(config.sft, PLAN, config.zero, config.lora, 0.05, 0.1, checkpointing=False)
        engines.append(training_engine(model, config, learning))
        return engines[-1]

    engines = []
    yield make
    release(*engines)


def train(engine, steps) -> list[float]:
    """Some updates, each as its number says; returns gradient norms. At the second one the gradient is too large for a
    half-precision loss scale, which falls."""
    norms = []
    for step in steps:
        set_rates(engine, 1.0 / (step + 1))
        torch.manual_seed(step)
        engine.train()
        inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(step)).to(next(engine.module.parameters()).dtype)
        for half in (inputs[:2], inputs[2:]):
            loss = ((engine(half).float() - 1.0) ** 2).sum() * (10.0 if step == 1 else 0.01)
            backward(engine, loss, 4.0)
            accumulate(engine)
        norms += optimizer_step(engine)
    return norms


def weights(engine) -> list[torch.Tensor]:
    return [whole_weight(parameter).clone() for parameter in engine.module.parameters()]


def kept(engine) -> dict[str, torch.Tensor]:
    """Its state, as a file would hold it."""
    return {name: tensor.detach().clone() for name, tensor in engine_state(engine).items()}


def like(engine, other):
    """The other engine with the weights of this one that do not learn."""
    with torch.no_grad():
        for old, new in zip(engine.module[5].parameters(), other.module[5].parameters(), strict=True):
            for name in ("data", "ds_tensor"):
                if hasattr(new, name) and getattr(new, name).numel():
                    getattr(new, name).copy_(getattr(old, name))
    return other


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@KINDS
def test_training_goes_on_where_it_was_kept(make_engine, zero, precision):
    engine = make_engine(zero, precision)
    train(engine, range(3))
    state, before = kept(engine), weights(engine)
    if precision == "fp16":
        assert (state["scale/cur_scale"], state["scale/cur_hysteresis"]) != (65536.0, 2.0)
    norms, after = train(engine, range(3, 6)), weights(engine)
    assert all(math.isfinite(norm) for norm in norms) and not same(before, after)
    restore_engine(engine, state.get)
    assert same(before, weights(engine))
    assert kept(engine).keys() == state.keys() and all(torch.equal(kept(engine)[name], state[name]) for name in state)
    assert str(train(engine, range(3, 6))) == str(norms)
    assert same(after, weights(engine))


@FEWER
def test_a_new_engine_goes_on_as_the_one_that_was_kept(make_engine, zero, precision):
    engine = make_engine(zero, precision)
    train(engine, range(3))
    state = kept(engine)
    norms, after = train(engine, range(3, 6)), weights(engine)
    other = like(engine, make_engine(zero, precision, seed=2))
    assert not same(weights(engine), weights(other))
    restore_engine(other, state.get)
    assert str(train(other, range(3, 6))) == str(norms)
    assert same(after, weights(other))


@FEWER
def test_an_engine_that_took_no_step_can_be_kept(make_engine, zero, precision):
    engine = make_engine(zero, precision)
    state = kept(engine)
    after = train(engine, range(3)), weights(engine)
    other = like(engine, make_engine(zero, precision, seed=2))
    restore_engine(other, state.get)
    found = train(other, range(3)), weights(other)
    assert str(found[0]) == str(after[0]) and same(found[1], after[1])


@FEWER
def test_what_is_missing_is_named(make_engine, zero, precision):
    engine = make_engine(zero, precision)
    train(engine, range(1))
    state = kept(engine)
    needed = [name for name in state if name.startswith(("weight/", "master/"))]
    assert any(name.startswith("master/") for name in needed) == (zero != "0" or precision != "fp32")
    for name in (needed[0], needed[-1]):
        with pytest.raises(KeyError, match=f"the checkpoint has no {name}"):
            restore_engine(engine, {key: tensor for key, tensor in state.items() if key != name}.get)


def test_frozen_weights_are_not_kept(make_engine):
    state = kept(make_engine("0", "fp32"))
    assert "weight/3.weight" in state and not any("5." in name for name in state)


@needs_fp16
@pytest.mark.parametrize("zero", ["0", "2", "3"])
def test_the_loss_scale_is_kept(make_engine, zero):
    engine = make_engine(zero, "fp16")
    scaler = engine.optimizer.loss_scaler
    scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis = 512.0, 44, 31, 1
    state = kept(engine)
    other = make_engine(zero, "fp16")
    restore_engine(other, state.get)
    found = [getattr(other.optimizer.loss_scaler, key) for key in LOSS_SCALE]
    assert found == [512.0, 44, 31, 1] and list(map(type, found)) == [float, int, int, int]


def test_the_state_is_that_of_the_moment(make_engine):
    """It is not copied: what is written later is what is there then."""
    engine = make_engine("0", "fp32")
    state = engine_state(engine)
    before = state["weight/0.weight"].clone()
    train(engine, range(1))
    assert not torch.equal(before, state["weight/0.weight"])


def draw() -> list:
    """Numbers of every generator, an odd number of normal ones: they come in pairs."""
    normal = [random.gauss(0.0, 1.0), float(np.random.randn()), float(torch.randn(1))]
    return [*normal, random.random(), random.getrandbits(40), float(np.random.rand()), torch.rand(3).tolist()]


def test_generators_go_on_where_they_were_kept():
    for _ in range(3):
        draw()
        state = {name: tensor.clone() for name, tensor in generators().items()}
        expected = [draw() for _ in range(3)]
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        restore_generators(state.get)
        assert [draw() for _ in range(3)] == expected


def test_generators_that_were_not_kept_stay():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    restore_generators({}.get)
    assert draw() == expected
