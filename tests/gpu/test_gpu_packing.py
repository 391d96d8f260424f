"""Rows without padding, by the kernel that reads them in half precision; idle models in host memory."""

import pytest
import torch
from support.tiny_models import built, policy_engine, save_models
from torch import nn

from rlhf.engine.zero import release
from rlhf.models.attention import has_kernel
from rlhf.models.forward import response_logprobs

# In half precision both ways round: this far apart on average, and for a single token.
BOUNDS = {"fp32": (1e-5, 1e-4), "bf16": (0.02, 0.5)}


def sequences(device):
    """Left-padded prompts and right-padded responses of many lengths."""
    generator = torch.Generator().manual_seed(0)
    prompts, responses = (torch.randint(1, most, (9,), generator=generator) for most in (40, 60))
    left = torch.arange(40) >= 40 - prompts[:, None]
    right = torch.arange(60) < responses[:, None]
    ids = torch.randint(5, 300, (9, 100), generator=generator)
    return ids.to(device), torch.cat([left, right], 1).long().to(device)


def gradients(engine, ids, mask, packing):
    """Log-probabilities, and the gradient of their sum, as one vector."""
    engine.module.zero_grad()
    logprobs, _ = response_logprobs(engine.module, ids, mask, 60, 1.0, packing)
    (logprobs * mask[:, -60:]).sum().backward()
    found = [p.grad.float().flatten() for p in engine.module.parameters() if p.grad is not None]
    return (logprobs * mask[:, -60:]).detach(), torch.cat(found)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["opt", "gpt-neox", "gpt-neo", "llama", "qwen3", "gemma2"])
def test_rows_without_padding_are_read_as_padded_ones(gpu_config, tokenizer, family, dtype):
    config = gpu_config(f"model={family}-tiny", f"precision={dtype}")
    engine = policy_engine(config, tokenizer)
    engine.module.requires_grad_(True)
    device = next(engine.module.parameters()).device
    ids, mask = sequences(device)
    packed, slope = gradients(engine, ids, mask, "packed")
    padded, other = gradients(engine, ids, mask, "none")
    mean, most = BOUNDS[dtype]
    gaps = (packed - padded).abs()[mask[:, -60:].bool()]
    assert float(gaps.mean()) < mean and float(gaps.max()) < most
    assert float(nn.functional.cosine_similarity(slope, other, dim=0)) > (0.9999 if dtype == "fp32" else 0.99)
    if device.type == "cuda":
        assert has_kernel(device, torch.bfloat16, 16)


def test_a_step_is_the_same_with_idle_models_put_aside(gpu_config, tokenizer, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("the host's memory is all there is; tests/unit/ppo/test_idle.py tries it there")
    usual = "precision=fp32", "rollout.max_new_tokens=24", "ppo.rollout_batch_size=16", "ppo.batch_size=16"
    models, found = None, []
    for value in ("false", "true"):
        config = gpu_config(*usual, f"ppo.offload_idle={value}")
        models = models or save_models(config, tokenizer, tmp_path)
        loader, engine, trainer = built(config, models, tokenizer)
        batch = next(iter(loader))
        trainer.train_rlhf(trainer.generate_experience(batch))
        found.append(trainer.metrics)
        release(engine.actor, engine.critic)
    names = "reward/mean", "kl/sequence", "policy/loss", "value/loss", "policy/grad_norm", "value/grad_norm"
    for name in names:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-4), name
