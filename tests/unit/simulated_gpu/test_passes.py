"""Passes over rows without padding on the simulated GPU give what padded ones give there: by the kernel that reads rows in
half precision, beyond windows, with heads that share keys, and where no kernel serves."""

import pytest
import torch
from support.gpusim import CUDA, SimulatedGPU, move_to_gpu, needs_gpusim
from support.simulated_rollouts import SMALL, sharp_policy, simulated_engine

from rlhf.catalog.families import gemma2, gpt_neo
from rlhf.data.tokens import left_mask, right_mask
from rlhf.models.forward import response_logprobs, response_values
from rlhf.models.load import new_scorer

pytestmark = [needs_gpusim, pytest.mark.slow]
# How far numbers may be apart: on average, and a single one; in bf16 both ways round.
GAPS = {"fp32": (1e-5, 1e-4), "bf16": (0.02, 0.3)}
PROMPTS, RESPONSES = (30, 3, 18, 9), (12, 40, 1, 25)


@pytest.mark.parametrize("dtype", GAPS)
@pytest.mark.parametrize("family", ["opt", "gpt-neo", "llama", "gemma2"])
@torch.no_grad()
def test_packed_passes_give_what_padded_ones_give(make_config, tokenizer, monkeypatch, family, dtype):
    monkeypatch.setattr(gpt_neo, "WINDOW", 16)
    monkeypatch.setattr(gemma2, "WINDOW", 16)
    config = make_config(f"model={family}-tiny", f"reward_model={family}-tiny", f"precision={dtype}", *SMALL)
    policy, scorer = sharp_policy(config, tokenizer), new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0)
    lengths = [torch.tensor(column) for column in (PROMPTS, RESPONSES)]
    mask = torch.cat([left_mask(lengths[0], 30), right_mask(lengths[1], 40)], 1)
    ids = torch.randint(5, 300, mask.shape, generator=torch.Generator().manual_seed(0))
    with SimulatedGPU():
        model, critic = simulated_engine(policy).module, move_to_gpu(scorer.eval().requires_grad_(False))
        there = ids.to(CUDA), mask.to(CUDA), 40
        packed, padded = (
            [response_logprobs(model, *there, 1.0, how)[0].cpu(), response_values(critic, *there, how).cpu()]
            for how in ("packed", "none")
        )
    mean, most = GAPS[dtype]
    for found, wanted in zip(packed, padded, strict=True):
        gaps = (found - wanted).abs()[mask[:, -40:].bool()]
        assert float(gaps.mean()) < mean and float(gaps.max()) < most
