"""`ppo.compile`: the same numbers, and no program for rollouts."""

from dataclasses import replace

import pytest
import torch
from support.small import SMALL_PPO
from support.tiny_models import assert_same_update, first_step, save_models, smooth_opt
from torch import nn

from rlhf.rollout.hybrid.sampler import HybridSampler

pytestmark = pytest.mark.rounding

SMALL = (
    *SMALL_PPO, "ppo.batch_size=8", "ppo.micro_batch_size=4",
    "rollout.max_new_tokens=12", "ppo.compile=true", "ppo.max_grad_norm=1e9",
)  # fmt: skip


def same(found, plain):
    for column in ("responses", "logprobs", "reference_logprobs", "values", "scores"):
        expected = getattr(plain.experience, column)
        torch.testing.assert_close(getattr(found.experience, column), expected, atol=1e-4, rtol=1e-4)
    assert_same_update(found, plain)


@pytest.mark.parametrize("packing", ["packed", "length"])
def test_layers_are_compiled_once_for_scoring_and_updates_and_not_for_rollouts(
    make_config, smooth_models, tokenizer, monkeypatch, packing
):
    """With a compiler that only counts its programs."""
    torch._dynamo.reset()
    programs, rolling, plain_compile, plain_generate = [], [], nn.Module.compile, HybridSampler.generate

    def count(graph, inputs):
        programs.append(graph)
        return lambda *given: rolling or graph(*given)

    def generate(*given):
        rolling.append("a rollout")
        try:
            return plain_generate(*given)
        finally:
            rolling.clear()

    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: plain_compile(module, backend=count, **options))
    monkeypatch.setattr(HybridSampler, "generate", generate)
    config = make_config(*SMALL, f"ppo.packing={packing}")
    found = first_step(config, smooth_models, tokenizer)
    # Before and after attention, with and without gradients, of the two models alike: not one per layer or length.
    assert 0 < len(programs) <= (16 if packing == "packed" else 8)
    same(found, first_step(replace(config, ppo=replace(config.ppo, compile=False)), smooth_models, tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["packed", "length"])
def test_compiled_layers_compute_the_same(make_config, smooth_models, tokenizer, packing):
    torch._dynamo.reset()
    config = make_config(*SMALL, f"ppo.packing={packing}", "ppo.gradient_checkpointing=true")
    found = first_step(config, smooth_models, tokenizer)
    same(found, first_step(replace(config, ppo=replace(config.ppo, compile=False)), smooth_models, tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("model=gemma2-tiny",), ("model=bloom-tiny",), ("lora=r8",), ("zero='2'",)])
def test_compiled_layers_of_other_kinds_too(make_config, tokenizer, tmp_path, overrides):
    torch._dynamo.reset()
    config = make_config(*SMALL, *overrides)
    with smooth_opt():
        models = save_models(replace(config, zero=replace(config.zero, stage=0)), tokenizer, tmp_path)
    found = first_step(config, models, tokenizer)
    same(found, first_step(replace(config, ppo=replace(config.ppo, compile=False)), models, tokenizer))
