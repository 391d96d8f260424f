"""Continuous batching: which families it serves, and what it leaves as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from agreement import disagreements
from tiny import policy_engine, prompts

from rlhf.config.checks import check
from rlhf.config.errors import ConfigError
from rlhf.config.rollouts import check_engine, paged_families
from rlhf.rollout import generate

TEXTS = tuple("How do I " + " ".join(f"clean a {thing}" for thing in ["kettle", "lamp", "sofa"][: n % 4]) for n in range(8))


def tiny(family):
    return f"model={family.replace('_', '-')}-tiny"


@pytest.mark.parametrize("family", paged_families())
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
    for changes in ({"do_sample": False}, {}, {"micro_batch_size": 4, "min_new_tokens": 4}, {"fixed_length": True}):
        rollout = replace(config.rollout, engine="paged", **changes)
        found = generate(engine, batch, numbers, tokenizer, rollout)
        plain = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
        assert disagreements(engine, batch, numbers, found, plain, rollout, tokenizer.eos_token_id) == []
        assert engine.module.config._attn_implementation == attention


@pytest.mark.parametrize("family", ["bloom", "gpt_neo", "other"])
def test_other_families_are_refused(make_config, family):
    config = make_config("rollout=paged", *([] if family == "other" else [tiny(family)]))
    config.model.family = family
    with pytest.raises(ConfigError, match=rf"^rollout.engine=paged: .* a {family} .*; try rollout=hybrid$"):
        check_engine(config)


def test_layers_cannot_be_gathered_for_requests_that_go_at_their_own_pace(make_config):
    config = make_config("rollout=paged", "rollout.gather=layers", "zero='3'", "hardware.gpus_per_node=2")
    with pytest.raises(ConfigError, match=r"^rollout.gather=layers: "):
        check(config)


def test_what_fails_in_the_managers_thread_is_raised_with_its_reason(make_config, tokenizer, monkeypatch):
    config = make_config("rollout=paged", "rollout.max_new_tokens=10")
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer, TEXTS)

    def fail(*arguments, **named):
        raise ValueError("the reason")

    monkeypatch.setattr("rlhf.rollout.paged.next_tokens", fail)
    with pytest.raises(RuntimeError, match="continuous batching failed: the reason"):
        generate(engine, batch, np.zeros((8, 10), dtype=np.float32), tokenizer, config.rollout)
