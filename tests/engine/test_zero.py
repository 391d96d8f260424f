import math

import pytest
import torch
from torch import nn

from rlhf.config.derive import Batches, batches
from rlhf.config.errors import ConfigError
from rlhf.engine.distributed import start
from rlhf.engine.zero import backward, deepspeed_config, set_learning_rate, step, training_engine
from rlhf.models.load import new_policy


def linear_engine(config, plan):
    torch.manual_seed(0)
    return training_engine(nn.Linear(4, 1), config, config.sft, plan, weight_decay=0.0)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_config, zero):  # row 30
    config = make_config(f"zero='{zero}'", "sft.max_grad_norm=1e9")
    start(config)
    inputs, weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 5.0, 2.0, 3.0])
    plan = Batches(ranks=1, per_rank=4, micro=1, accumulation=4)
    engine = linear_engine(config, plan)
    torch.manual_seed(0)
    plain = nn.Linear(4, 1)
    loss = ((plain(inputs)[:, 0] ** 2) * weights).sum() / weights.sum()
    loss.backward()
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in plain.parameters()))
    norms = []
    for row, weight in zip(inputs, weights, strict=True):
        backward(engine, (engine(row[None])[:, 0] ** 2 * weight).sum(), float(weights.sum()), plan)
        norms.append(step(engine))
    assert norms[:3] == [None, None, None]
    assert norms[3] == pytest.approx(expected, rel=1e-5)


def test_the_optimiser_has_the_configured_epsilon_and_betas(make_config, tokenizer):  # row 26
    config = make_config("sft.eps=3.0e-6", "sft.betas=[0.8,0.99]", "sft.weight_decay=0.1")
    start(config)
    engine = training_engine(
        new_policy(config.model, config, tokenizer, 0.0), config, config.sft, batches(config, "sft"), 0.1
    )
    groups = engine.optimizer.param_groups
    assert all(group["eps"] == 3.0e-6 and tuple(group["betas"]) == (0.8, 0.99) for group in groups)
    decayed = {group["weight_decay"]: {parameter.ndim for parameter in group["params"]} for group in groups}
    assert decayed == {0.1: {2}, 0.0: {1}}
    set_learning_rate(engine, 0.25)
    assert all(group["lr"] == 0.25 for group in groups)


def test_deepspeed_is_told_what_is_configured(make_config):
    config = make_config("zero=3-offload", "precision=bf16", "sft.micro_batch_size=4")
    settings = deepspeed_config(config, batches(config, "sft"), max_grad_norm=0.5)
    assert settings["train_batch_size"] == config.sft.batch_size
    assert settings["gradient_accumulation_steps"] == 4 and settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == 3 and settings["bf16"] == {"enabled": True}
    assert {"offload_optimizer", "offload_param"} <= set(settings["zero_optimization"])


def test_a_group_of_another_size_than_configured_is_refused(make_config):
    start(make_config())
    with pytest.raises(ConfigError, match=r"hardware\.gpus_per_node"):
        start(make_config("hardware.gpus_per_node=2"))
