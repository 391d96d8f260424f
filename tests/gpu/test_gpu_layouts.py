"""Steps on a GPU under every layout of DeepSpeed, in fp16 with its loss scale, on two ranks, and from a checkpoint."""

import json
import math
import re

import pytest
import torch
from support.command import ROOT
from support.precision_marks import HAS_FP16
from support.ranks import run_new_processes
from support.tiny_models import built, save_models

from rlhf.engine.state import engine_state, generators, restore_engine, restore_generators
from rlhf.engine.step import optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, set_rates, training_engine
from rlhf.models.load import new_policy
from rlhf.planner.batches import batches
from rlhf.runtime.compat.deepspeed import loss_scale_state
from rlhf.runtime.distributed import start

STEP = (
    "rollout.max_new_tokens=24", "ppo.rollout_batch_size=16", "ppo.batch_size=16", "ppo.micro_batch_size=8",
    "ppo.update_epochs=1", "ppo.max_steps=4", "data.demo.demonstrations=300", "data.demo.heldout_prompts=8",
    "zero.stage3_param_persistence_threshold=0", "zero.reduce_bucket_size=4096",
)  # fmt: skip
# What a step comes to, whatever the layout: rounding apart.
METRICS = "reward/mean", "kl/sequence", "policy/loss", "value/loss", "policy/grad_norm", "value/grad_norm"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Where models are saved, once."""
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture
def models(gpu_config, tokenizer, saved):
    """Small models on disk."""
    if not (saved / "actor").exists():
        save_models(gpu_config("precision=fp32"), tokenizer, saved)
    return str(saved / "actor"), str(saved / "reward")


def steps(config, models, tokenizer, count):
    """The metrics of so many steps, and the engine, with which the caller is done first."""
    loader, engine, trainer = built(config, models, tokenizer)
    found = []
    for batch, _ in zip(loader, range(count), strict=False):
        trainer.train_rlhf(trainer.generate_experience(batch))
        found.append(dict(trainer.metrics))
    return found, engine


def assert_same_steps(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name in METRICS:
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-4), name


@pytest.mark.parametrize("layout", ["1", "2", "3", "2-offload", "3-offload"])
def test_two_steps_are_the_same_under_every_layout(gpu_config, tokenizer, models, layout):
    """The second begins with what the first made of the weights, read by graphs where these were captured."""
    found = []
    for zero in ("0", layout):
        config = gpu_config(*STEP, "precision=fp32", f"zero={zero!r}")
        metrics, engine = steps(config, models, tokenizer, 2)
        found.append(metrics)
        sampler = engine.sampler_of(engine.actor, config.rollout)
        assert any(sampler.decoder.graphs.values())
        assert bool(sampler.weights.buffers) == (zero[0] == "3" and torch.cuda.is_available())  # which graphs read
        engine.release()
    assert_same_steps(*found)


@pytest.mark.parametrize("layout", ["0", "2", "3", "2-offload"])
def test_fp16_trains_and_its_loss_scale_falls_until_gradients_fit(gpu_config, tokenizer, models, layout):
    if not (torch.cuda.is_available() or HAS_FP16):
        pytest.skip("this CPU does not train in fp16")
    found, engine = steps(gpu_config(*STEP, "precision=fp16", f"zero={layout!r}"), models, tokenizer, 4)
    scales = [loss_scale_state(model)["cur_scale"] for model in (engine.actor, engine.critic)]
    engine.release()
    assert all(math.isfinite(value) for metrics in found for value in metrics.values())
    assert any(metrics["policy/overflows"] == 0 and metrics["policy/grad_norm"] > 0 for metrics in found)
    assert all(1 <= scale <= 2**16 for scale in scales)


def test_two_ranks_of_one_gpu_do_what_one_does(gpu_config, tokenizer, models):
    """Where weights are sharded over them; by gloo, since NCCL takes one rank per GPU."""
    expected, engine = steps(gpu_config(*STEP, "precision=fp32"), models, tokenizer, 1)
    engine.release()
    device = "hardware=h100" if torch.cuda.is_available() else "hardware=cpu"
    words = *STEP, "precision=fp32", "zero='3'", "rollout.gather=all", device, "hardware.gpus_per_node=2", "plan.check=off"
    try:
        first, _ = run_new_processes(str(ROOT / "tests/support/step_on_ranks.py"), 2, *models, *words)
    except AssertionError as error:
        if torch.cuda.is_available() and (
            refused := re.search(r".*gloo.*(?:not support|unsupport).*", str(error), re.IGNORECASE)
        ):
            pytest.skip(f"torch {torch.__version__}: {refused[0]}")
        raise
    assert_same_steps([json.loads(first.splitlines()[-1])], expected)


def test_training_goes_on_from_a_checkpoint_with_the_same_dropout(gpu_config, tokenizer):
    config = gpu_config("model=gpt2-tiny", "precision=fp32", "sft.batch_size=4", "sft.micro_batch_size=4")
    start(config)
    plan = batches(config, "sft")
    learning = TrainingSpec(config.sft, plan, config.zero, config.lora, 1e-3, 0.0, False)
    engine = training_engine(new_policy(config.model, config, tokenizer, config.zero, 0.2), config, learning)
    ids = torch.randint(5, 300, (4, 20), generator=torch.Generator().manual_seed(0)).to(engine.device)

    def train():
        engine.train()
        set_rates(engine, 1.0)
        for _ in range(2):
            backward(engine, torch.logsumexp(engine(input_ids=ids).logits.float(), -1).sum(), 80.0)
            optimizer_step(engine)
        return torch.cat([parameter.detach().flatten() for parameter in engine.module.parameters()])

    train()
    kept = {name: tensor.detach().clone() for name, tensor in (engine_state(engine) | generators()).items()}
    assert ("generator/cuda" in kept) == torch.cuda.is_available()
    after, other = train(), train()
    restore_engine(engine, kept.get)
    restore_generators(kept.get)
    again = train()
    assert float((again - after).abs().max()) < 1e-4 < float((other - after).abs().max())
    release(engine)
