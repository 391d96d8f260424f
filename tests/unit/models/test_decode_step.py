"""Decode steps by a model's weights: shapes of families that the tests of rollouts leave out, and products of several
layers at once. Rollouts of each family are compared with transformers' generate in tests/unit/rollout/test_hybrid.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rollout_compare import disagreements
from support.tiny_models import PROMPTS, generate, learning_engine, policy_engine, prompts

from rlhf.models.lora import add_adapters, base_model
from rlhf.models.step import families, layers
from rlhf.models.step.layers import Apart, Copies, Linear
from rlhf.rollout.hybrid import agreement

pytestmark = pytest.mark.rounding


def compare(config, tokenizer):
    """Roll out with hybrid and hf; returns the share of the logits' spread by which both ways of a step differ."""
    agreement.known.cache_clear()
    engine, width = policy_engine(config, tokenizer), config.rollout.max_new_tokens
    batch, numbers = prompts(config, tokenizer), np.random.default_rng(0).random((len(PROMPTS), width), dtype=np.float32)
    rollouts = config.rollout, replace(config.rollout, engine="hf")
    found, plain = (generate(engine, batch, numbers, tokenizer, rollout) for rollout in rollouts)
    assert disagreements(engine, batch, numbers, found, plain, config.rollout, tokenizer.eos_token_id) == []
    return agreement.agreement_of(engine.module).gap


@pytest.mark.parametrize("words", [
    ("model=opt-tiny", "model.do_layer_norm_before=false", "model.word_embed_proj_dim=16"),
    pytest.param(("model=llama-tiny", "model.num_key_value_heads=1"), marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("copied", [0, layers.COPIED_BYTES])
def test_other_shapes_of_a_family_and_weights_apart_give_the_same(make_config, tokenizer, monkeypatch, words, copied):
    monkeypatch.setattr(layers, "COPIED_BYTES", copied)
    assert compare(make_config("rollout.max_new_tokens=4", *words), tokenizer) < 1e-5


def test_a_step_that_gives_other_numbers_is_not_used(make_config, tokenizer, monkeypatch):
    def off(model, positions, copies):
        reader = families.read_opt(model, positions, copies)
        return replace(reader, head=lambda x: 1.01 * reader.head(x))

    monkeypatch.setitem(families.FAMILIES, "opt", off)
    with pytest.warns(UserWarning, match="read by transformers' code, slower: by weights they are off by 0.0"):
        assert compare(make_config("rollout.max_new_tokens=4"), tokenizer) > 1e-3
    agreement.known.cache_clear()


def test_a_model_whose_modules_are_others_is_left_to_transformers(make_config, tokenizer):
    model = policy_engine(make_config(), tokenizer).module
    assert families.make_reader(model, 8, Copies(model)) is not None
    model.model.decoder.layers[1].fc1 = torch.nn.Sequential(model.model.decoder.layers[1].fc1)
    assert families.make_reader(model, 8, Copies(model)) is None


def test_adapters_that_add_to_a_layer_leave_it_to_transformers(make_config, tokenizer):
    config = make_config("lora=r8")
    model = add_adapters(policy_engine(config, tokenizer).module, config.lora, 0)
    assert families.make_reader(model, 8, Copies(base_model(model))) is None
    with model.disable_adapter():
        assert families.make_reader(model, 8, Copies(base_model(model))) is not None


@pytest.mark.parametrize("rows", [1, 8])
def test_layers_of_one_input_are_one_product(make_config, tokenizer, rows):
    """A view of weights that lie side by side, a copy of others, or each by itself where copies would be large."""
    model = policy_engine(make_config(), tokenizer).module
    buffer, x = torch.randn(5, 3), torch.randn(rows, 3)
    beside = [Linear(buffer[:2]), Linear(buffer[2:])]
    turned = [Linear(buffer[3:], torch.randn(2)), Linear(buffer[:3], torch.randn(3))]
    copies = Copies(model)
    one = copies.stack("beside", *beside)
    assert one.weight.data_ptr() == buffer.data_ptr() and list(copies.tensors) == []
    for parts in (beside, turned):
        torch.testing.assert_close(copies.stack(str(len(copies.tensors)), *parts)(x), Apart(tuple(parts))(x))
    kept = copies.stack("kept", *turned).weight
    buffer.mul_(2)
    again = copies.stack("kept", *turned).weight
    assert again.data_ptr() == kept.data_ptr() and torch.equal(again, torch.cat([buffer[3:], buffer[:3]]))
    copies.stacks = False
    assert isinstance(copies.stack("large", *turned), Apart)


@pytest.mark.slow
def test_deepspeed_lays_the_weights_of_an_actor_in_half_precision_side_by_side(make_config, tokenizer):
    config = make_config("model=llama-tiny", "precision=bf16", "zero='2'")
    layer = learning_engine(config, tokenizer).module.model.layers[1]
    own, mlp = layer.self_attn, layer.mlp
    for parts in ((own.q_proj, own.k_proj, own.v_proj), (mlp.gate_proj, mlp.up_proj)):
        assert layers.side_by_side([part.weight for part in parts])
