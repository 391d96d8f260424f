"""Continuous batching: which families it serves, and what it leaves as it was."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rollout_compare import disagreements
from support.tiny_models import generate, policy_engine, prompts
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from rlhf.catalog.sampler import paged_families
from rlhf.config.checks import check
from rlhf.config.errors import ConfigError
from rlhf.config.rollouts import check_engine
from rlhf.rollout import paged

pytestmark = pytest.mark.rounding

TEXTS = tuple("How do I " + " ".join(f"clean a {thing}" for thing in ["kettle", "lamp", "sofa"][: n % 4]) for n in range(8))


def tiny(family):
    return f"model={family.replace('_', '-')}-tiny"


FAMILIES = [
    family if family in ("opt", "llama") else pytest.param(family, marks=pytest.mark.slow) for family in paged_families()
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_tokens_of_generate(make_config, tokenizer, family):
    config = make_config(tiny(family), "rollout.max_new_tokens=10")
    check(replace(config, rollout=replace(config.rollout, engine="paged")))
    engine = policy_engine(config, tokenizer)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    attention = engine.module.config._attn_implementation
    batch, numbers = prompts(config, tokenizer, TEXTS), np.random.default_rng(2).random((8, 10), dtype=np.float32)
    for changes in ({"do_sample": False}, {"micro_batch_size": 4, "min_new_tokens": 4}):
        rollout = replace(config.rollout, engine="paged", **changes)
        found = generate(engine, batch, numbers, tokenizer, rollout)
        plain = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
        assert disagreements(engine, batch, numbers, found, plain, rollout, tokenizer.eos_token_id) == []
        assert engine.module.config._attn_implementation == attention


@pytest.mark.parametrize("family", ["bloom", "gpt_neo", "other"])
def test_other_families_are_refused(make_config, family):
    config = make_config("rollout=paged", *([] if family == "other" else [tiny(family)]))
    config.model.family = family
    (problem,) = check_engine(config)
    assert re.search(rf"^rollout.engine=paged: .* a {family} .*; try rollout=hybrid$", str(problem))


def test_layers_cannot_be_gathered_for_requests_that_go_at_their_own_pace(make_config):
    config = make_config("rollout=paged", "rollout.gather=layers", "zero='3'", "hardware.gpus_per_node=2")
    with pytest.raises(ConfigError, match=r"^rollout.gather=layers: "):
        check(config)


def test_sharded_weights_are_gathered_whole_whatever_room_there_is(make_config, tokenizer, monkeypatch):
    config = make_config("rollout=paged", "zero='3'", "rollout.max_new_tokens=4")
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer, TEXTS)
    numbers = np.full((8, 4), 0.5, dtype=np.float32)
    monkeypatch.setattr("rlhf.rollout.weights.fits_whole", lambda engine: pytest.fail("asked for room"))
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
    assert disagreements(engine, batch, numbers, found, plain, config.rollout, tokenizer.eos_token_id) == []


def test_a_request_that_begins_anew_goes_on_with_its_own_numbers(make_config, tokenizer, monkeypatch):
    config = make_config("rollout=paged", "rollout.max_new_tokens=48", "rollout.fixed_length=true")
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer, TEXTS)
    wanted, evict, evicted = paged.settings, OffloadingManager.offload_requests, []

    def little_room(*arguments):
        size = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"  # before 5.18
        return replace(wanted(*arguments), num_blocks=14, **{size: 16})

    monkeypatch.setattr(paged, "settings", little_room)
    monkeypatch.setattr(OffloadingManager, "offload_requests", lambda self: evicted.append(evict(self)) or evicted[-1])
    numbers = np.random.default_rng(2).random((8, 48), dtype=np.float32)
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
    assert evicted
    assert disagreements(engine, batch, numbers, found, plain, config.rollout, tokenizer.eos_token_id) == []


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError])
def test_what_fails_in_the_managers_thread_is_raised_as_it_is(make_config, tokenizer, monkeypatch, error):
    config = make_config("rollout=paged", "rollout.max_new_tokens=10")
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer, TEXTS)

    def fail(*arguments, **named):
        raise error("the reason")

    monkeypatch.setattr("rlhf.rollout.paged.next_tokens", fail)
    with pytest.raises(error, match="the reason"):
        generate(engine, batch, np.zeros((8, 10), dtype=np.float32), tokenizer, config.rollout)
