"""Rollouts on the simulated GPU: captured graphs give what plain calls give there, to the bit, whatever changes between
rollouts. What plain calls give is compared with transformers' generate in tests/unit/rollout."""

from dataclasses import replace

import pytest
import torch
from support.gpusim import SimulatedGPU, needs_gpusim
from support.simulated_rollouts import (
    SMALL,
    assert_same_rollouts,
    ragged_prompts,
    roll_out,
    sharp_policy,
    simulated_engine,
)

from rlhf.catalog.families import gemma2, gpt_neo
from rlhf.models.lora import add_adapters
from rlhf.rollout import create_sampler

pytestmark = needs_gpusim
# Each family, and the operators that a decode step of two layers has at most, in fp32 and in bf16. RMSNorm, and attention
# in fp32, count as the operators that a CPU build makes of them; a GPU has a kernel for each.
FAMILIES = {
    "opt": (60, 47), "bloom": (98, 103), "gpt-neox": (65, 52), "gptj": (63, 50), "gpt-neo": (63, 47),
    "gpt2": (60, 47), "codegen": (63, 50), "llama": (92, 90), "qwen2": (92, 90), "qwen3": (107, 108),
    "mistral": (92, 90), "gemma2": (128, 151),
}  # fmt: skip
NEW = 12
# Across the end of the first 128 slots of the cache; a batch of one pass over its prompts, and one of two.
LONG, MIXED = (126, 118, 121, 116, 120), (124, 60, 122)


def settings(make_config, family, dtype, *words):
    return make_config(f"model={family}-tiny", f"precision={dtype}", f"rollout.max_new_tokens={NEW}", *SMALL, *words)


def compare(config, tokenizer, batches, changes=None, limits=None):
    """Roll out with graphs and without; returns the GPU that had graphs. Weights change before each rollout but the
    first."""
    found = []
    for graphs in (False, True):
        with SimulatedGPU() as gpu:
            engine = simulated_engine(sharp_policy(config, tokenizer))
            rollout = replace(config.rollout, graphs=graphs, **(changes or {}))
            given = [
                ragged_prompts(rollout, lengths, seed, limits=limits and limits[: len(lengths)])
                for seed, lengths in enumerate(batches)
            ]
            sampler = create_sampler(engine, tokenizer, rollout)
            found.append(roll_out(sampler, given, engine.module))
    assert_same_rollouts(found[1], found[0])
    assert all(graph.replays for graph in gpu.graphs)
    return gpu


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_graphs_give_what_plain_calls_give(make_config, tokenizer, monkeypatch, family, dtype):
    """Beyond the window, where the family has one."""
    monkeypatch.setattr(gpt_neo, "WINDOW", 32)
    monkeypatch.setattr(gemma2, "WINDOW", 32)
    gpu = compare(
        settings(make_config, family, dtype, "rollout.max_new_tokens=7"), tokenizer, [LONG] * (1 + (dtype == "fp32"))
    )
    most = FAMILIES[family][dtype == "bf16"]
    assert gpu.graphs and all(graph.kernels <= most for graph in gpu.graphs)


@pytest.mark.slow
def test_graphs_serve_later_rollouts_of_other_sizes_and_see_new_weights(make_config, tokenizer):
    gpu = compare(settings(make_config, "opt", "bf16"), tokenizer, [LONG, MIXED, LONG])
    assert len(gpu.graphs) == 2  # of six rows and of four: the third rollout captures none


@pytest.mark.parametrize(("family", "dtype"), [pytest.param("llama", "fp32", marks=pytest.mark.slow), ("opt", "bf16")])
def test_rows_that_end_are_left_out(make_config, tokenizer, family, dtype):
    gpu = compare(settings(make_config, family, dtype), tokenizer, [LONG], limits=[2, NEW, 3, 1, NEW])
    assert gpu.graphs


@pytest.mark.slow
def test_penalties_stop_texts_and_filters_work_inside_graphs(make_config, tokenizer):
    changes = {"top_k": 20, "top_p": 0.9, "min_new_tokens": 3, "repetition_penalty": 1.3, "stop": ["qu", "e"]}
    compare(settings(make_config, "opt", "fp32", "rollout.temperature=0.7"), tokenizer, [LONG, MIXED], changes)


@pytest.mark.slow
def test_graphs_are_captured_anew_where_the_cache_is_given_back(make_config, tokenizer):
    gpu = compare(settings(make_config, "opt", "bf16"), tokenizer, [MIXED, MIXED], {"release_cache": True})
    assert len(gpu.graphs) == 2


def test_a_longer_batch_keeps_the_graphs_where_the_longest_prompt_is_known(make_config, tokenizer):
    config = settings(make_config, "opt", "bf16")
    with SimulatedGPU() as gpu:
        sampler = create_sampler(simulated_engine(sharp_policy(config, tokenizer)), tokenizer, config.rollout, 200)
        batches = [ragged_prompts(config.rollout, lengths, limits=[4, 4]) for lengths in ((20, 9), (180, 3))]
        roll_out(sampler, batches, sampler.engine.module)
        assert sampler.decoder.slots >= 200 + NEW and len(gpu.graphs) == 1 and gpu.graphs[0].replays > 4


@pytest.mark.slow
def test_adapters_are_merged_for_graphs_too_and_the_base_comes_back(make_config, tokenizer):
    config = settings(make_config, "opt", "bf16", "lora=r8")
    found = []
    for graphs in (False, True):
        policy = add_adapters(sharp_policy(config, tokenizer), config.lora, 0)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
        with SimulatedGPU() as gpu:
            engine = simulated_engine(policy)
            before = [parameter.cpu() for parameter in policy.parameters()]
            rollout = replace(config.rollout, graphs=graphs, max_new_tokens=6)
            sampler = create_sampler(engine, tokenizer, rollout)
            found.append(roll_out(sampler, [ragged_prompts(rollout, (20, 9))], policy))
            assert all(torch.equal(old, new.cpu()) for old, new in zip(before, policy.parameters(), strict=True))
    assert gpu.graphs
    assert_same_rollouts(found[1], found[0])
