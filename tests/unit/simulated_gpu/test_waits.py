"""Where the host waits for the GPU, with reasons: not for a token, nor for a part of the prompts. And how many operators a
decode step has."""

from dataclasses import replace

import pytest
import torch
from support.gpusim import CUDA, SimulatedGPU, move_to_gpu, needs_gpusim
from support.simulated_rollouts import SMALL, ragged_prompts, sharp_policy, simulated_engine

from rlhf.models.cached import kernel_agrees
from rlhf.models.forward import response_logprobs, response_scores, response_values
from rlhf.models.load import new_scorer
from rlhf.models.step import layers
from rlhf.rollout import create_sampler
from rlhf.rollout.hybrid import agreement
from rlhf.rollout.hybrid.decoder import LOOK_EVERY

pytestmark = needs_gpusim
# Each place that waits, with what for: how often in a rollout of 18 tokens, and why it must.
A_ROLLOUT = {
    ("rollout/base.py generate_in_parts", "copy to the host"): (1, "lengths of prompts decide who is read together"),
    ("rollout/base.py generate_in_parts", "item"): (1, "the longest response is the result's shape"),
    ("rollout/hybrid/decoder.py Decoder.run", "copy to the host"): (2, "which rows go on, every LOOK_EVERY steps"),
}
AT_FIRST = {
    ("rollout/sampling.py end_tokens", "copy to the GPU from pageable memory"): (1, "a decoder: the ids that end a text"),
    ("rollout/hybrid/agreement.py Agreement.confirm", "item"): (1, "a process: steps by weights and by transformers agree"),
}
A_PASS = {
    ("models/forward.py count_tokens", "copy to the host"): (1, "the lengths that attention needs, and how many outputs"),
}


def expected(*parts):
    return {place: count for part in parts for place, (count, _) in part.items()}


@pytest.mark.parametrize("copies", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rollout_waits_where_it_must_alone(make_config, tokenizer, copies):
    config = make_config("model=opt-tiny", "precision=bf16", "rollout.max_new_tokens=18", *SMALL)
    assert 2 * LOOK_EVERY < config.rollout.max_new_tokens < 3 * LOOK_EVERY
    lengths = (120, 100, 60, 20, 5)  # of three parts
    agreement.known.cache_clear()
    with SimulatedGPU() as gpu:
        kernel_agrees(CUDA, torch.bfloat16, 4, 4, 8)  # is tried once on a device
        sampler = create_sampler(simulated_engine(sharp_policy(config, tokenizer)), tokenizer, config.rollout)
        limits = [18] * len(lengths) * copies
        for first in (True, False):
            prompts, draws = ragged_prompts(config.rollout, lengths, limits=limits, copies=copies)
            gpu.waits.clear()
            sampler.generate(prompts, draws)
            assert gpu.waits == expected(A_ROLLOUT, *[AT_FIRST] * first)


@pytest.mark.parametrize(
    ("family", "packing"), [("opt", "packed"), pytest.param("bloom", "length", marks=pytest.mark.slow)]
)
def test_a_pass_waits_once(make_config, tokenizer, family, packing):
    config = make_config(f"model={family}-tiny", f"reward_model={family}-tiny", "precision=bf16", *SMALL)
    scorer = new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0)
    with SimulatedGPU() as gpu:
        policy = simulated_engine(sharp_policy(config, tokenizer)).module
        move_to_gpu(scorer.eval().requires_grad_(False))
        prompts, _ = ragged_prompts(config.rollout, (9, 4, 7))
        ids, mask = prompts.ids, (prompts.ids > 0).long()
        passes = (
            lambda: response_logprobs(policy, ids, mask, 4, 1.0, packing, entropies=True),
            lambda: response_values(scorer, ids, mask, 4, packing),
            lambda: response_scores(scorer, ids, mask, packing),
        )
        for run in passes:
            gpu.waits.clear()
            run()
            assert gpu.waits == expected(A_PASS)


@pytest.mark.slow
@pytest.mark.parametrize(("copied", "most"), [(0, 14), (layers.COPIED_BYTES, 11)])
def test_a_decode_step_of_opt_has_few_operators(make_config, tokenizer, monkeypatch, copied, most):
    """Views and empty tensors, which launch nothing, aside. Other families' steps: test_rollouts.py."""
    monkeypatch.setattr(layers, "COPIED_BYTES", copied)
    kernels = []
    for count in (2, 4):
        words = "model=opt-tiny", "precision=bf16", "rollout.max_new_tokens=4", f"model.num_hidden_layers={count}"
        config = make_config(*words, *SMALL)
        with SimulatedGPU() as gpu:
            engine = simulated_engine(sharp_policy(config, tokenizer))
            prompts, draws = ragged_prompts(config.rollout, (5, 3))
            create_sampler(engine, tokenizer, replace(config.rollout, fixed_length=True)).generate(prompts, draws)
        kernels.append(gpu.graphs[-1].kernels)
    layer = (kernels[1] - kernels[0]) // 2
    assert layer <= most and kernels[0] - 2 * layer <= 25
