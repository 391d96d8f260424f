"""Rollouts by captured graphs against plain calls and against transformers' generate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rollout_compare import disagreements
from support.tiny_models import generate, policy_engine, sample

from rlhf.catalog.families import gemma2, gpt_neo
from rlhf.data.tokens import left_mask, prompt_batch, right_mask
from rlhf.models.forward import response_logprobs
from rlhf.rollout import create_sampler
from rlhf.runtime.device import free

FAMILIES = (
    "opt", "bloom", "gpt-neox", "gptj", "gpt-neo", "gpt2", "codegen", "llama", "qwen2", "qwen3", "mistral", "gemma2",
)  # fmt: skip


def ragged(engine, config, count, seed=0):
    """Prompts of many lengths, and numbers for their responses."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(5, 300, n).tolist() for n in generator.integers(3, 60, count)]
    numbers = generator.random((count, config.rollout.max_new_tokens), dtype=np.float32)
    device = next(engine.module.parameters()).device
    return prompt_batch(ids, list(range(count)), 0, device), numbers


def sharpened(engine, factor):
    """An engine whose random weights say more clearly what comes next."""
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return engine


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_give_the_tokens_of_plain_calls_and_of_transformers(gpu_config, tokenizer, family):
    config = gpu_config(f"model={family}-tiny", "precision=fp32", "rollout.max_new_tokens=40")
    engine = sharpened(policy_engine(config, tokenizer), 3.0)
    batch, numbers = ragged(engine, config, 20)
    for sampling in ({"do_sample": False}, {}, {"top_k": 20, "top_p": 0.9, "min_new_tokens": 6}, {"fixed_length": True}):
        rollout = replace(config.rollout, **sampling)
        sampler = create_sampler(engine, tokenizer, rollout)
        graphs = [sample(sampler, batch, numbers) for _ in range(2)]
        assert any(play is not None for play in sampler.decoder.graphs.values())
        for changes in ({"graphs": False}, {"engine": "hf"}):
            plain = generate(engine, batch, numbers, tokenizer, replace(rollout, **changes))
            for found in graphs:
                assert disagreements(engine, batch, numbers, found, plain, rollout, tokenizer.eos_token_id) == []


@pytest.mark.parametrize(("family", "tokens"), [("gpt-neo", 100), ("gemma2", 100), ("opt", 230)])
def test_graphs_go_on_beyond_windows_and_buckets(gpu_config, tokenizer, family, tokens, monkeypatch):
    """From one end of the cache that is read to the next."""
    monkeypatch.setattr(gpt_neo, "WINDOW", 32)
    monkeypatch.setattr(gemma2, "WINDOW", 32)
    size = f"rollout.max_new_tokens={tokens}", "model.max_position_embeddings=512"
    config = gpu_config(f"model={family}-tiny", "precision=fp32", *size)
    engine = sharpened(policy_engine(config, tokenizer), 3.0)
    batch, numbers = ragged(engine, config, 12)
    sampler = create_sampler(engine, tokenizer, config.rollout)
    for _ in range(2):
        graphs = sample(sampler, batch, numbers)
        plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
        assert disagreements(engine, batch, numbers, graphs, plain, config.rollout, tokenizer.eos_token_id) == []
    assert batch.ids.device.type == "cpu" or len({key.slots for key in sampler.decoder.graphs}) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_continuous_batching_gives_the_tokens_of_generate(gpu_config, tokenizer, family, precision):
    config = gpu_config(f"model={family}-tiny", f"precision={precision}", "rollout.max_new_tokens=24")
    engine = sharpened(policy_engine(config, tokenizer), 3.0)
    batch, numbers = ragged(engine, config, 12)
    for changes in ({}, {"micro_batch_size": 5, "min_new_tokens": 4}):
        rollout = replace(config.rollout, engine="paged", **changes)
        found = generate(engine, batch, numbers, tokenizer, rollout)
        assert int(found.lengths.min()) >= rollout.min_new_tokens and bool(torch.isfinite(found.logprobs).all())
        if precision == "fp32":
            plain = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
            assert disagreements(engine, batch, numbers, found, plain, rollout, tokenizer.eos_token_id) == []


def test_graphs_outlive_those_of_another_sampler(gpu_config, tokenizer):
    """torch 2.12 and 2.13 free what products on a stream need with any graph that was captured on it."""
    config = gpu_config("precision=bf16", "rollout.max_new_tokens=40")
    engine = sharpened(policy_engine(config, tokenizer), 3.0)
    batch, numbers = ragged(engine, config, 32)
    kept, found = create_sampler(engine, tokenizer, config.rollout), []
    for _ in range(3):
        found.append(sample(kept, batch, numbers))
        other = create_sampler(engine, tokenizer, replace(config.rollout, do_sample=False))
        for _ in range(2):
            sample(other, batch, numbers)
        other.release()
        free()
        taken = torch.zeros(2**24, device=batch.ids.device)  # where workspaces were, perhaps
        assert float(taken.sum()) == 0
    assert all(torch.equal(one.tokens, found[1].tokens) for one in found[1:])


def test_graphs_serve_later_rollouts_of_other_sizes_and_see_new_weights(gpu_config, tokenizer):
    config = gpu_config("precision=fp32", "rollout.max_new_tokens=24", "rollout.temperature=3.0")
    engine = policy_engine(config, tokenizer)
    sampler = create_sampler(engine, tokenizer, config.rollout)
    for number, count in enumerate((32, 5, 32, 17, 31, 1)):
        batch, numbers = ragged(engine, config, count, number)
        sharpened(engine, 1.1)
        graphs = sample(sampler, batch, numbers)
        plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
        assert disagreements(engine, batch, numbers, graphs, plain, config.rollout, tokenizer.eos_token_id) == []


def test_penalties_and_stop_texts_work_inside_graphs(gpu_config, tokenizer):
    config = gpu_config("precision=fp32", "rollout.max_new_tokens=24", "rollout.do_sample=false")
    engine = sharpened(policy_engine(config, tokenizer), 3.0)
    rollout = replace(config.rollout, stop=["qu", "e"], repetition_penalty=1.5, min_new_tokens=3)
    batch, numbers = ragged(engine, config, 24)
    plain = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
    sampler = create_sampler(engine, tokenizer, rollout)
    for _ in range(2):
        graphs = sample(sampler, batch, numbers)
        assert torch.equal(graphs.lengths, plain.lengths) and torch.equal(graphs.ended, plain.ended)
        assert torch.equal(graphs.tokens, plain.tokens)


@pytest.mark.parametrize("model", ["opt-125m", *(f"{family}-tiny" for family in FAMILIES)])
def test_half_precision_is_near_the_trainers_log_probabilities(gpu_config, tokenizer, sizes, monkeypatch, model):
    """The kernel that reads what rows of the cache hold, where a family has it, beyond windows and as rows end."""
    monkeypatch.setattr(gpt_neo, "WINDOW", 32)
    monkeypatch.setattr(gemma2, "WINDOW", 32)
    name = sizes(model, "opt-tiny") if model == "opt-125m" else model
    config = gpu_config(f"model={name}", "model.path=null", "precision=bf16", "rollout.max_new_tokens=32")
    engine = policy_engine(config, tokenizer)
    batch, numbers = ragged(engine, config, 16)
    batch = replace(batch, limits=torch.arange(1, 33, 2, device=batch.ids.device))
    sampler = create_sampler(engine, tokenizer, config.rollout)
    for _ in range(2):  # by plain calls, some of them; by graphs
        responses = sample(sampler, batch, numbers)
    actions = right_mask(responses.lengths, responses.tokens.size(1))
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], 1)
    ids = torch.cat([batch.ids, responses.tokens], 1)
    with torch.no_grad():
        logprobs, _ = response_logprobs(engine, ids, mask, actions.size(1), 1.0)
    gaps = (logprobs - responses.logprobs).abs()[actions.bool()]
    assert float(gaps.mean()) < 0.02 and float(gaps.max()) < 0.5


def test_a_rollout_gives_its_memory_back(gpu_config, tokenizer):
    config = gpu_config("precision=bf16", "rollout.max_new_tokens=40", "rollout.release_cache=true")
    engine = policy_engine(config, tokenizer)
    batch, numbers = ragged(engine, config, 32)
    sampler = create_sampler(engine, tokenizer, config.rollout)
    sample(sampler, batch, numbers)  # libraries take their workspaces once
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    responses = sample(sampler, batch, numbers)
    assert sampler.decoder is None
    del responses
    assert (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) <= before
