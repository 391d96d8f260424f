import math

import pytest
import torch
from torch import nn

from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, adamw, backward, frozen_engine, set_rates, training_engine
from rlhf.models.load import new_policy
from rlhf.planner.batches import batches
from rlhf.runtime.distributed import join, start
from rlhf.runtime.ds_config import frozen_settings, training_settings

INPUTS = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.tensor([1.0, 5.0, 2.0, 3.0])
PARTS = Batches(ranks=1, per_rank=4, micro=1, accumulation=4)
STAGES = pytest.mark.parametrize("zero", [0, 1, 2, 3])


def learning(config, plan, rate=0.1, decay=0.0):
    return TrainingSpec(config.sft, plan, config.zero, config.lora, rate, decay, checkpointing=False)


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


@STAGES
def test_accumulated_gradients_are_those_of_the_whole_batch(make_config, zero):  # row 30
    config = make_config(f"zero='{zero}'", "sft.max_grad_norm=1e9")
    start(config)
    engine, plain = training_engine(linear(), config, learning(config, PARTS)), linear()
    loss = ((plain(INPUTS)[:, 0] ** 2) * WEIGHTS).sum() / WEIGHTS.sum()
    loss.backward()
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in plain.parameters()))
    for row, weight in zip(INPUTS, WEIGHTS, strict=True):
        backward(engine, (engine(row[None])[:, 0] ** 2 * weight).sum(), float(WEIGHTS.sum()))
        accumulate(engine)
    assert optimizer_step(engine) == [pytest.approx(expected, rel=1e-5)]


def test_the_optimiser_has_the_configured_epsilon_and_betas(make_config, tokenizer):  # row 26
    config = make_config("sft.eps=3.0e-6", "sft.betas=[0.8,0.99]", "sft.weight_decay=0.1")
    start(config)
    policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    engine = training_engine(policy, config, learning(config, batches(config, "sft"), rate=0.5, decay=0.1))
    groups = engine.optimizer.param_groups
    assert all(group["eps"] == 3.0e-6 and tuple(group["betas"]) == (0.8, 0.99) for group in groups)
    decayed = {group["weight_decay"]: {parameter.ndim for parameter in group["params"]} for group in groups}
    assert decayed == {0.1: {2}, 0.0: {1}}
    set_rates(engine, 0.25)
    assert all(group["lr"] == 0.125 for group in groups)


@STAGES
def test_only_matrices_decay_and_a_flat_shard_of_one_still_is_one(make_config, tokenizer, zero):
    config = make_config(f"zero='{zero}'")
    start(config)
    policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    assert all(hasattr(parameter, "ds_shape") == (zero == 3) for parameter in policy.parameters())
    optimizer = adamw(policy, config, learning(config, PARTS, decay=0.1))
    decayed = {group["weight_decay"]: {id(parameter) for parameter in group["params"]} for group in optimizer.param_groups}
    for name, parameter in policy.named_parameters():
        vector = name.endswith("bias") or "norm" in name
        assert id(parameter) in decayed[0.0 if vector else 0.1], name


def test_deepspeed_is_told_what_is_configured(make_config):
    config = make_config("zero=3-offload", "precision=bf16", "sft.micro_batch_size=4")
    settings = training_settings(config, config.zero, batches(config, "sft"), max_grad_norm=0.5)
    assert settings["train_batch_size"] == config.sft.batch_size
    assert settings["gradient_accumulation_steps"] == 4 and settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert {"offload_optimizer", "offload_param"} <= set(settings["zero_optimization"])
    (
        config.zero.reduce_bucket_size,
        config.zero.stage3_max_live_parameters,
        config.zero.stage3_param_persistence_threshold,
    ) = 300, 200, 100
    told = training_settings(config, config.zero, batches(config, "sft"), 0.5)["zero_optimization"]
    limits = {"reduce_bucket_size": 300, "allgather_bucket_size": 300, "sub_group_size": 300,
              "stage3_max_live_parameters": 200, "stage3_max_reuse_distance": 200, "stage3_prefetch_bucket_size": 200,
              "stage3_param_persistence_threshold": 100}  # fmt: skip
    assert limits == {key: told[key] for key in limits}


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1), ("fp16", 1)])
def test_stage_0_is_run_as_stage_1_in_half_precision(make_config, precision, stage):
    """Whose optimiser for stage 0 is broken; a model that only reads has none."""
    config = make_config(f"precision={precision}")
    assert training_settings(config, config.zero, PARTS, 1.0)["zero_optimization"]["stage"] == stage
    assert frozen_settings(config, config.zero)["zero_optimization"]["stage"] == 0


def test_each_role_is_sharded_as_its_own_group_says(make_config):
    config = make_config("zero='2'", "zero@critic_zero=3-offload", "critic_zero.reduce_bucket_size=7", "precision=fp16")
    actor, critic = (training_settings(config, zero, PARTS, 1.0) for zero in (config.zero, config.critic_zero))
    assert (actor["zero_optimization"]["stage"], critic["zero_optimization"]["stage"]) == (2, 3)
    assert critic["zero_optimization"]["reduce_bucket_size"] == 7 != actor["zero_optimization"]["reduce_bucket_size"]
    assert "offload_optimizer" not in actor["zero_optimization"]
    assert actor["fp16"]["enabled"] and "bf16" not in actor


@pytest.mark.parametrize(("stage", "told"), [(0, 0), (1, 0), (2, 0), (3, 3)])
def test_a_model_that_only_reads_is_sharded_at_stage_3_alone_and_has_no_optimiser(make_config, stage, told):
    config = make_config("zero=3-offload")
    config.zero.stage = stage
    settings = frozen_settings(config, config.zero)["zero_optimization"]
    assert settings["stage"] == told and "offload_optimizer" not in settings


def test_zero_plus_plus_is_passed_on(make_config):
    config = make_config("zero=plusplus", "hardware.gpus_per_node=4")
    assert training_settings(config, config.zero, PARTS, 1.0)["zero_optimization"]["zero_hpz_partition_size"] == 4
    config.zero.zero_quantized_weights = config.zero.zero_quantized_gradients = True
    settings = training_settings(config, config.zero, PARTS, 1.0)["zero_optimization"]
    assert settings["zero_quantized_weights"] and settings["zero_quantized_gradients"]
    plain = training_settings(config, config.critic_zero, PARTS, 1.0)["zero_optimization"]
    assert not any("quantized" in name for name in plain)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_frozen_engine_learns_nothing(make_config, zero):
    config = make_config(f"zero='{zero}'")
    start(config)
    engine = frozen_engine(nn.Sequential(linear(), nn.Dropout(0.5)), config, config.zero)
    assert not engine.module.training and not any(p.requires_grad for p in engine.module.parameters())
    assert torch.allclose(engine(INPUTS), linear()(INPUTS))


def test_a_group_of_another_size_than_configured_is_refused(make_config):
    start(make_config())
    with pytest.raises(ConfigError, match=r"hardware\.gpus_per_node"):
        start(make_config("hardware.gpus_per_node=2"))


def test_fp16_is_refused_where_deepspeed_says_that_the_device_cannot(make_config, monkeypatch):
    start(make_config())
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"^precision\.dtype=fp16: .*; try precision=fp32$"):
        join(make_config("precision=fp16"))
