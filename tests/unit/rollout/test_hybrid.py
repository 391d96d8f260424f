"""The hybrid engine against transformers' generate, family by family, and what it alone does."""

import gc
import json
import os
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.quick import mark_slow
from support.ranks import run_script
from support.rollout_compare import disagreements, distances
from support.texts import encode_prompt
from support.tiny_models import generate, learning_engine, policy_engine, prompts, random_numbers, sample

from rlhf.config.errors import ConfigError
from rlhf.data.tokens import prompt_batch, right_mask
from rlhf.engine.zero import frozen_engine
from rlhf.rollout import create_sampler
from rlhf.rollout.hybrid.agreement import agreement_of
from rlhf.rollout.hybrid.decoder import SLOTS, Decoder, next_size

pytestmark = pytest.mark.rounding

FAMILIES = (
    "opt",
    "bloom",
    "gpt-neox",
    "gptj",
    "gpt-neo",
    "gpt2",
    "codegen",
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
)
TEXTS = tuple(
    "How do I " + " ".join(f"clean a {thing}" for thing in ["kettle", "lamp", "sofa"][: n % 4]) for n in range(10)
)


def ending_at(tokenizer, rows, width, ends):
    """Numbers that draw end-of-text at these steps from a uniform distribution, and other tokens before."""
    numbers = np.random.default_rng(0).random((rows, width), dtype=np.float32) * 0.9 + 0.05
    for row, end in enumerate(ends):
        numbers[row, end] = (tokenizer.eos_token_id + 0.5) / 768
    return numbers


@pytest.mark.parametrize("family", mark_slow(FAMILIES, ("opt", "bloom", "gpt-neo", "codegen", "gemma2")))
def test_a_family_gives_the_tokens_of_plain_generate(make_config, tokenizer, family):
    config = make_config(f"model={family}-tiny", "rollout.max_new_tokens=10")
    engine = policy_engine(config, tokenizer)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)  # sharper than random weights are
    batch = prompts(config, tokenizer, TEXTS)
    numbers = np.random.default_rng(2).random((len(TEXTS), 10), dtype=np.float32)
    for changes in ({"do_sample": False}, {}, {"micro_batch_size": 3, "min_new_tokens": 4}, {"fixed_length": True}):
        rollout = replace(config.rollout, **changes)
        plain = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
        found = generate(engine, batch, numbers, tokenizer, rollout)
        assert disagreements(engine, batch, numbers, found, plain, rollout, tokenizer.eos_token_id) == []
        assert not (found.tokens * (1 - right_mask(found.lengths, found.tokens.size(1)))).any()
    gap = agreement_of(engine.module).gap
    assert gap is None if family == "bloom" else gap < 1e-5  # steps were read by the weights alone, but for ALiBi's


def test_rows_that_end_are_left_out_and_disturb_no_other(make_config, tokenizer, monkeypatch):
    config = make_config("rollout.max_new_tokens=16", "rollout.temperature=1000.0")
    engine = policy_engine(config, tokenizer)
    ends = [0, 15, 3, 3, 9, 1, 14, 2, 0, 5]
    numbers, batch = ending_at(tokenizer, 10, 16, ends), prompts(config, tokenizer, TEXTS)
    sizes, step = [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, kind: (sizes.append(kind.rows), step(self, kind)))
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    assert found.lengths.tolist() == [end + 1 for end in ends] and found.ended.all()
    assert sizes[0] < 10 and sizes[-1] <= 2 and sizes == sorted(sizes, reverse=True)
    assert len(sizes) == max(ends)  # and nothing after the last one has ended
    plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
    assert disagreements(engine, batch, numbers, found, plain, config.rollout, tokenizer.eos_token_id) == []


def test_a_rollout_rounds_alike_whatever_came_before(make_config, tokenizer, monkeypatch):
    """A resumed run has no decoder of an earlier, larger batch, and must go on as the run that was left alone."""
    config = make_config("rollout.max_new_tokens=16", "rollout.temperature=1000.0")
    engine, sizes, step = policy_engine(config, tokenizer), [], Decoder.step
    numbers, batch = ending_at(tokenizer, 10, 16, [0, 15, 3, 3, 9, 1, 14, 2, 0, 5]), prompts(config, tokenizer, TEXTS)
    used, fresh = (create_sampler(engine, tokenizer, config.rollout) for _ in range(2))
    sample(used, prompts(config, tokenizer, TEXTS * 7), random_numbers(config, 70))
    monkeypatch.setattr(Decoder, "step", lambda self, kind: (sizes.append(kind.rows), step(self, kind))[1])
    again, expected = sample(used, batch, numbers), sample(fresh, batch, numbers)
    assert used.decoder.rows == 70 and sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]
    assert torch.equal(again.logprobs, expected.logprobs)


def test_batches_shrink_to_few_sizes_that_are_large_enough():
    sizes = {next_size(rows) for rows in range(257)}
    assert sizes == {1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256}
    assert all(rows <= next_size(rows) <= max(4, 1.5 * rows) for rows in range(1, 257))


def test_adapters_are_merged_for_the_rollout_and_the_base_comes_back_bit_for_bit(make_config, tokenizer):
    from rlhf.runtime.distributed import start

    config = make_config("lora=r8", "rollout.max_new_tokens=10")
    start(config)
    engine = learning_engine(config, tokenizer)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    before = {name: parameter.clone() for name, parameter in engine.module.named_parameters()}
    batch, numbers = prompts(config, tokenizer, TEXTS), np.random.default_rng(1).random((10, 10), dtype=np.float32)
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
    without = generate(frozen_engine_of(engine, config), batch, numbers, tokenizer, config.rollout)
    assert disagreements(engine, batch, numbers, found, plain, config.rollout, tokenizer.eos_token_id) == []
    assert not torch.equal(found.tokens, without.tokens)
    assert all(torch.equal(before[name], parameter) for name, parameter in engine.module.named_parameters())


def frozen_engine_of(engine, config):
    """The base model inside an adapted engine, without its adapters."""
    import copy

    plain = copy.deepcopy(engine.module).unload()
    return frozen_engine(plain, config, config.zero)


def test_a_prompt_is_read_once_for_all_its_responses(make_config, tokenizer, monkeypatch):
    config = make_config("rollout.max_new_tokens=4")
    engine = policy_engine(config, tokenizer)
    ids = [encode_prompt(text, tokenizer, config.data) for text in TEXTS]
    batch = prompt_batch(ids, list(range(30)), tokenizer.pad_token_id, torch.device("cpu"), copies=3)
    read, forward = [], engine.module.forward
    monkeypatch.setattr(engine.module, "forward", lambda **kw: (read.append(kw["input_ids"].shape), forward(**kw))[1])
    generate(engine, batch, np.random.default_rng(0).random((30, 4), dtype=np.float32), tokenizer, config.rollout)
    assert sum(rows for rows, width in read if width > 1) == len(TEXTS)


def test_caches_are_kept_for_the_next_rollout_unless_they_are_to_be_freed(make_config, tokenizer):
    config = make_config("rollout.max_new_tokens=12", "rollout.repetition_penalty=1.3", "rollout.stop=[qu]")
    numbers = np.random.default_rng(3).random((10, 12), dtype=np.float32)
    engine, other = (policy_engine(config, tokenizer) for _ in range(2))
    long, short = prompts(config, tokenizer, TEXTS), prompts(config, tokenizer, TEXTS[:2])
    sampler = create_sampler(engine, tokenizer, config.rollout)
    sample(sampler, long, numbers[::-1].copy())
    kept = sampler.decoder
    for batch in (short, long, short):  # of fewer rows, of shorter prompts, after a longer one
        count = len(batch.samples)
        again = sample(sampler, batch, numbers[:count])
        assert sampler.decoder is kept
        forgetful = create_sampler(other, tokenizer, replace(config.rollout, release_cache=True))
        fresh = sample(forgetful, batch, numbers[:count])
        assert forgetful.decoder is None
        assert torch.equal(again.tokens, fresh.tokens) and torch.equal(again.lengths, fresh.lengths)
        assert torch.allclose(again.logprobs, fresh.logprobs, atol=1e-5)
    sampler.release()
    assert sampler.decoder is None
    sample(sampler, short, numbers[:2])
    module = weakref.ref(engine.module)
    engine.destroy()
    del engine, kept, sampler
    gc.collect()
    assert module() is None


def test_a_step_reads_no_more_of_the_cache_than_it_must(make_config, tokenizer, monkeypatch):
    config = make_config("rollout.max_new_tokens=40", "rollout.fixed_length=true", "ppo.eos_penalty=null")
    engine, slots, step = policy_engine(config, tokenizer), [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, kind: (slots.append(kind.slots), step(self, kind)))
    batch = prompts(config, tokenizer, TEXTS)
    generate(engine, batch, np.random.default_rng(0).random((10, 40), dtype=np.float32), tokenizer, config.rollout)
    used = [int(batch.lengths.max()) + number for number in range(1, 40)]
    assert all(need <= seen < need + SLOTS["cpu"] for need, seen in zip(used, slots, strict=True))
    assert len(set(slots)) > 1


def test_a_cache_that_does_not_fit_says_how_many_rows_would(make_config, tokenizer, monkeypatch):
    config = make_config("rollout.max_new_tokens=12")
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer, TEXTS)
    numbers = np.random.default_rng(0).random((10, 12), dtype=np.float32)
    settings = engine.module.config
    per_row = 2 * settings.num_hidden_layers * settings.hidden_size * 4 * SLOTS["cpu"]
    monkeypatch.setattr("rlhf.rollout.base.free_bytes", lambda device: 7 * per_row)
    with pytest.raises(ConfigError, match=r"^rollout.micro_batch_size=10: .* 7 rows fit; try a divisor .* up to 7$"):
        generate(engine, batch, numbers, tokenizer, config.rollout)
    found = generate(engine, batch, numbers, tokenizer, replace(config.rollout, micro_batch_size=5))
    assert found.lengths.min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "gather"), [("none", "all"), ("none", "layers"), ("r8", "all"), ("r8", "layers")])
def test_sharded_weights_are_gathered_once_or_layer_by_layer(lora, gather):
    printed = [json.loads(out.splitlines()[-1]) for out in run_script(__file__, 2, lora, gather)]
    assert all(told == {"kept": True, "tokens": True, "weights": True, "gap": True, "trains": True} for told in printed)


def main(lora, gather):
    """Rank by rank: rollouts of different lengths equal plain generate's, the shards stay, and training goes on."""
    from rlhf.config.points import compose_config
    from rlhf.data.tokenized import DataSource
    from rlhf.models.tokenizer import build_tokenizer
    from rlhf.rollout.weights import RolloutWeights
    from rlhf.runtime.compat.deepspeed import local_shard
    from rlhf.runtime.distributed import rank, start

    config = compose_config(
        "zero='3'", "zero.stage3_param_persistence_threshold=0", "hardware.gpus_per_node=2", f"lora={lora}",
        f"rollout.gather={gather}",
        "rollout.temperature=1000.0", "rollout.max_new_tokens=12",
    )  # fmt: skip
    start(config)
    tokenizer = build_tokenizer(config.model, "model", DataSource(config))
    engine = learning_engine(config, tokenizer)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            if "lora_B" in name:
                local_shard(parameter).normal_(0, 0.05)
    before = {name: local_shard(parameter).clone() for name, parameter in engine.module.named_parameters()}
    numbers = ending_at(tokenizer, 10, 12, [1 + rank()] * 10 if rank() == 0 else [11, 3, 2, 7, 8, 1, 0, 4, 10, 11])
    batch = prompts(config, tokenizer, TEXTS)
    with distances() as apart:
        plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
    assert min(apart) > 1e-7, "draw other numbers: rounding decides a token"
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    places, weights = [], RolloutWeights(engine, replace(config.rollout, gather="all"))
    for keep in (True, True, False):
        weights.keeps = keep
        weights.sync()
        with weights.in_place():
            places.append([parameter.data_ptr() for parameter in engine.module.parameters()])
        engine.module(input_ids=batch.ids)  # layer by layer
    told = {
        "kept": places[0] == places[1] == places[2] and not weights.buffers,
        "tokens": torch.equal(found.tokens, plain.tokens * right_mask(plain.lengths, plain.tokens.size(1))),
        "weights": all(torch.equal(before[name], local_shard(p)) for name, p in engine.module.named_parameters()),
        "gap": torch.allclose(found.logprobs, plain.logprobs, atol=1e-4),
    }
    engine.train()
    logits = engine(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), use_cache=False).logits
    engine.backward(logits.float().logsumexp(-1).mean())
    for _ in range(engine.gradient_accumulation_steps()):
        engine.step()
    told["trains"] = bool(torch.isfinite(generate(engine, batch, numbers, tokenizer, config.rollout).logprobs).all())
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
