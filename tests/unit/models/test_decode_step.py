"""Decode steps by a model's weights: shapes of families that the tests of rollouts leave out, and products of several
layers at once. Rollouts of each family are compared with transformers' generate in tests/unit/rollout/test_hybrid.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.quick import mark_slow
from support.rollout_compare import disagreements
from support.tiny_models import PROMPTS, generate, learning_engine, policy_engine, prompts, sample

from rlhf.models.lora import add_adapters, base_model
from rlhf.models.step import families, layers, packed
from rlhf.models.step.layers import Apart, Chain, Copies, Linear, Reordered
from rlhf.planner import cache
from rlhf.rollout import create_sampler
from rlhf.rollout.hybrid import agreement
from rlhf.rollout.hybrid.decoder import Decoder

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


@pytest.mark.parametrize("rows", [1, 5, 32, 300])
def test_packed_weights_give_the_products_of_the_weights(rows):
    """Of a weight as it lies in nn.Linear, of one that is turned as GPT-2's are, and of products of several layers."""
    assert packed.can_pack()
    x, weight, bias = torch.randn(rows, 96), torch.randn(160, 96), torch.randn(160)
    plain, turned = Linear(weight, bias), Linear(torch.randn(96, 64).t())
    several = Apart((plain, turned)), Chain((plain, torch.relu)), Reordered(plain, torch.randperm(160))
    for product in (plain, turned, *several):
        found = packed.pack(product)
        assert found is not product
        torch.testing.assert_close(found(x), product(x), atol=1e-4, rtol=1e-4)
    assert packed.pack(torch.relu) is torch.relu


@pytest.mark.parametrize("family", mark_slow(("opt", "gpt2", "llama", "gpt-neox"), ("opt", "gpt2")))
def test_large_models_are_read_from_packed_weights_as_they_are_now(make_config, tokenizer, monkeypatch, family):
    """Each batch packs them anew, and frees them: an update changes weights."""
    monkeypatch.setattr(cache, "PACKED_PARAMETERS", range(1, 2**30))
    read, read_weights = [], Decoder.read_weights
    monkeypatch.setattr(Decoder, "read_weights", lambda *given: (read.append(given[1]), read_weights(*given))[1])
    config = make_config(f"model={family}-tiny", "rollout.max_new_tokens=16")
    numbers = np.random.default_rng(0).random((6, 16), dtype=np.float32)
    engine, batch = policy_engine(config, tokenizer), prompts(config, tokenizer, PROMPTS * 2)
    agreement.known.cache_clear()
    sampler = create_sampler(engine, tokenizer, config.rollout)
    for _ in "before", "after":
        found = sample(sampler, batch, numbers)
        plain = generate(engine, batch, numbers, tokenizer, replace(config.rollout, engine="hf"))
        assert disagreements(engine, batch, numbers, found, plain, config.rollout, tokenizer.eos_token_id) == []
        assert sampler.decoder.reader is None
        with torch.no_grad():
            for parameter in engine.module.parameters():
                parameter.mul_(1.5)
    assert all(isinstance(reader.blocks[0].attention.out, packed.Packed) for reader in read)
    assert len({id(reader) for reader in read}) == 2 and agreement.agreement_of(engine.module).gap < 1e-5


def test_small_models_and_short_rollouts_pack_nothing(make_config):
    rollout = make_config("rollout.max_new_tokens=64").rollout
    asked = {"rollout": rollout, "device": "cpu", "is_fp32": True, "parameters": 125_000_000, "rows": 8}
    assert cache.packs_weights(**asked)
    for other in (
        {"device": "cuda"}, {"is_fp32": False}, {"parameters": 165_760}, {"parameters": 2_700_000_000}, {"rows": 3},
        {"rollout": replace(rollout, max_new_tokens=8)}, {"rollout": replace(rollout, engine="hf")},
    ):  # fmt: skip
        assert not cache.packs_weights(**asked | other)


@pytest.mark.slow
def test_deepspeed_lays_the_weights_of_an_actor_in_half_precision_side_by_side(make_config, tokenizer):
    config = make_config("model=llama-tiny", "precision=bf16", "zero='2'")
    layer = learning_engine(config, tokenizer).module.model.layers[1]
    own, mlp = layer.self_attn, layer.mlp
    for parts in ((own.q_proj, own.k_proj, own.v_proj), (mlp.gate_proj, mlp.up_proj)):
        assert layers.side_by_side([part.weight for part in parts])
