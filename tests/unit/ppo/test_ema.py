"""The moving average of the actor, against averages kept by hand."""

import deepspeed
import pytest
import torch
from safetensors.torch import load_file
from support.quick import mark_slow
from support.small import SMALL_PPO
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf import DeepSpeedPPOTrainer, DeepSpeedRLHFEngine
from rlhf.config.derive import Batches
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.engine.save import save_model, whole_weight
from rlhf.engine.zero import TrainingSpec, training_engine
from rlhf.models.load import load_policy
from rlhf.models.lora import is_adapter
from rlhf.models.source import Source
from rlhf.ppo.ema import ExponentialMovingAverage
from rlhf.runtime.distributed import start

PLAN = Batches(ranks=1, per_rank=1, micro=1, accumulation=1)
SMALL = (*SMALL_PPO, "ppo.update_epochs=2")


def zero_of(stage):
    return (
        f"zero={stage!r}",
        "zero.stage3_param_persistence_threshold=0",
        f"zero@critic_zero={stage!r}",
        f"zero@reference_zero={stage!r}",
    )


def learner(config, model):
    learning = TrainingSpec(config.ppo, PLAN, config.zero, config.lora, 1e-3, 0.0, False)
    return training_engine(model, config, learning)


def fill(engine, number):
    """Give every trained weight known values, whole or sharded; returns them."""
    generator = torch.Generator().manual_seed(number)
    given = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            sharded = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded):
                value = (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype)
                parameter.data.copy_(value)
                given[name] = value
    return given


def number(engine, value):
    """Set the one weight of a small engine."""
    with torch.no_grad():
        engine.module.weight.fill_(value)


SCHEDULES = (
    (0, 1, {0: 8.0, 1: 0.75 * 8 + 0.25 * 1, 2: 0.75 * 6.25 + 0.25 * 2, 3: 0.75 * 5.1875 + 0.25 * 3}),
    (2, 1, {0: None, 1: None, 2: 2.0, 3: 2.25, 4: 0.75 * 2.25 + 0.25 * 4}),
    (1, 3, {0: None, 1: 1.0, 2: 1.0, 3: 1.0, 4: 0.75 * 1 + 0.25 * 4, 5: 1.75, 6: 1.75, 7: 0.75 * 1.75 + 0.25 * 7}),
)


@pytest.mark.parametrize(("first", "interval", "expected"), SCHEDULES)
def test_the_average_by_hand(make_config, first, interval, expected):  # row 34
    """The weight is 8 before training and n after update n; an average that has not begun is the weight itself."""
    config = make_config("ppo.ema=true", "ppo.ema_decay=0.75", f"ppo.ema_start={first}", f"ppo.ema_interval={interval}")
    start(config)
    engine = learner(config, nn.Linear(1, 1, bias=False))
    average = ExponentialMovingAverage(engine, config.ppo)
    for updates, value in expected.items():
        weight = 8.0 if updates == 0 else float(updates)
        number(engine, weight)
        average.update(updates)
        assert average.read(engine.module.weight).item() == (weight if value is None else value)
        assert engine.module.weight.item() == weight  # the model itself is left alone


def test_the_average_of_half_precision_weights_is_kept_in_float32(make_config):
    """In bf16, 1 + 0.01 * (1.0078125 - 1) is 1, however often it is added."""
    config = make_config("ppo.ema=true", "ppo.ema_decay=0.99", "precision=bf16", "zero='1'")
    start(config)
    engine = learner(config, nn.Linear(1, 1, bias=False).bfloat16())
    average = ExponentialMovingAverage(engine, config.ppo)
    number(engine, 1.0)
    average.update(0)
    number(engine, 1.0078125)
    for updates in range(1, 301):
        average.update(updates)
    weight = average.read(engine.module.weight)
    assert weight.dtype == torch.bfloat16 and float(weight) == 1.0078125  # 1 + 0.0078125 * (1 - 0.99**300), rounded


@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("stage", mark_slow(("0", "1", "3", "3-offload"), ("0", "3")))
def test_sharded_or_whole_the_same_average_is_saved(make_config, tokenizer, tmp_path, models, stage, dtype):
    config = make_config("ppo.ema=true", "ppo.ema_decay=0.9", f"precision={dtype}", *zero_of(stage))
    start(config)
    engine = learner(config, load_policy(Source(models[0], "ppo.actor"), config, config.zero, 0.0))
    average = ExponentialMovingAverage(engine, config.ppo)
    expected = {}
    for updates in range(3):
        for name, value in fill(engine, updates).items():
            expected[name] = value.float() if updates == 0 else 0.9 * expected[name] + 0.1 * value.float()
        average.update(updates)
    save_model(engine, tokenizer, config.lora, tmp_path / "ema", "", average.read)
    saved = load_file(tmp_path / "ema" / "model.safetensors")
    assert saved.keys() == expected.keys()
    for name, weight in saved.items():
        assert weight.dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
        assert torch.allclose(weight.float(), expected[name], rtol=0 if dtype == "fp32" else 2**-8, atol=1e-6), name
    if dtype == "fp32" and stage == "0":
        assert sum(shadow.numel() for shadow in average.shadows.values()) == sum(w.numel() for w in saved.values())


@pytest.mark.parametrize("stage", ("0", "3"))
def test_of_adapters_alone_the_adapters_are_averaged(make_config, tokenizer, tmp_path, models, stage):
    config = make_config("ppo.ema=true", "ppo.ema_decay=0.9", "lora=r8", *zero_of(stage))
    start(config)
    engine = learner(config, load_policy(Source(models[0], "ppo.actor"), config, config.zero, 0.0))
    average = ExponentialMovingAverage(engine, config.ppo)
    expected = {}
    for updates in range(3):
        for name, value in fill(engine, updates).items():
            assert is_adapter(name)
            expected[name] = value if updates == 0 else 0.9 * expected[name] + 0.1 * value
        average.update(updates)
    save_model(engine, tokenizer, config.lora, tmp_path / "ema", "", average.read)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema", "ema-adapter"]
    adapters = load_file(tmp_path / "ema-adapter" / "adapter_model.safetensors")
    assert {name.replace("weight", "default.weight") for name in adapters} == expected.keys()
    for name, weight in adapters.items():
        assert torch.allclose(weight, expected[name.replace("weight", "default.weight")], atol=1e-6)
    base = AutoModelForCausalLM.from_pretrained(models[0]).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "ema").state_dict()
    changed = 0
    for name, weight in merged.items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (expected.get(f"{place}.lora_{factor}.default.weight") for factor in "AB")
        delta = 2.0 * b @ a if a is not None and name.endswith(".weight") else torch.zeros_like(weight)  # alpha / rank = 2
        assert torch.allclose(weight, base[name] + delta, atol=1e-5), name
        changed += bool(delta.any())
    assert changed == 12


@pytest.mark.parametrize(
    ("stage", "changes", "first", "interval"),
    (("0", (), 0, 1), ("2", (), 3, 2), ("3", (), 1, 3), ("0", ("lora=r8",), 0, 1)),
)
def test_the_saved_average_is_that_of_the_trained_actor(
    make_config, tokenizer, tmp_path, models, stage, changes, first, interval
):
    config = make_config(
        *SMALL, "ppo.ema=true", "ppo.ema_decay=0.6", f"ppo.ema_start={first}", f"ppo.ema_interval={interval}",
        "ppo.learning_rate=3.0e-3", *zero_of(stage), *changes,
    )  # fmt: skip
    loader = create_prompt_dataloader(config, tokenizer)
    engine = DeepSpeedRLHFEngine(*models, tokenizer, len(loader), config)

    def snapshot():
        return {n: whole_weight(p).clone() for n, p in engine.actor.module.named_parameters() if p.requires_grad}

    history = [snapshot()]
    trainer = DeepSpeedPPOTrainer(engine=engine, args=config)
    train_minibatch = trainer.train_minibatch

    def remember(experience, order):
        train_minibatch(experience, order)
        history.append(snapshot())

    trainer.train_minibatch = remember
    for batch in loader:
        trainer.train_rlhf(trainer.generate_experience(batch))
    assert len(history) == 1 + 2 * 2 * 2

    followed = history[first::interval]
    averages = {
        name: 0.6 ** (len(followed) - 1) * followed[0][name]
        + sum(0.4 * 0.6 ** (len(followed) - 1 - k) * followed[k][name] for k in range(1, len(followed)))
        for name in followed[0]
    }
    save_model(engine.actor, tokenizer, config.lora, tmp_path / "model", "")
    save_model(engine.actor, tokenizer, config.lora, tmp_path / "ema", "", trainer.average.read)
    file = "adapter_model.safetensors" if changes else "model.safetensors"
    model, ema = (
        load_file(tmp_path / place / file) for place in (("adapter", "ema-adapter") if changes else ("model", "ema"))
    )
    assert model.keys() == ema.keys()
    for name, weight in ema.items():
        key = name.replace("weight", "default.weight") if changes else name
        assert torch.allclose(weight, averages[key], rtol=1e-5, atol=1e-7), name
        assert torch.equal(model[name], history[-1][key])
        assert not torch.equal(weight, model[name])
    plain = [AutoModelForCausalLM.from_pretrained(tmp_path / place).state_dict() for place in ("model", "ema")]
    assert any(not torch.equal(plain[0][name], plain[1][name]) for name in plain[0])


def test_without_ema_there_is_none(make_config, tokenizer, models):
    config = make_config(*SMALL)
    engine = DeepSpeedRLHFEngine(*models, tokenizer, 1, config)
    assert DeepSpeedPPOTrainer(engine=engine, args=config).average is None
