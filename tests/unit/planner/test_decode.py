"""Bytes that a decode step reads."""

import pytest

from rlhf.planner.auto import choose_layout
from rlhf.planner.decode import decode_bytes, decoded_weight_bytes
from rlhf.planner.memory import Batch, cache_bytes_per_token, phase_bytes, weight_bytes


def test_weights_are_read_but_for_an_embedding_that_is_no_head(make_config):
    model = make_config().model
    assert model.tie_word_embeddings
    assert decoded_weight_bytes(model, "fp32") == 4 * model.num_parameters
    assert decoded_weight_bytes(model, "bf16") == 2 * model.num_parameters
    model.tie_word_embeddings = False
    assert decoded_weight_bytes(model, "bf16") == 2 * (model.num_parameters - model.vocab_size * model.word_embed_proj_dim)


def test_the_cache_of_grouped_queries_is_smaller(make_config):
    model = make_config("model=llama-3.1-8b").model
    assert (model.num_hidden_layers, model.num_key_value_heads, model.head_dim) == (32, 8, 128)
    assert cache_bytes_per_token(model, "bf16") == 2 * 32 * 8 * 128 * 2 == 131072  # 128 KiB a token


@pytest.mark.parametrize(("prompts", "responses"), [([5], [1]), ([5], [4]), ([7, 3, 9], [2, 6, 1])])
def test_each_live_row_reads_its_own_tokens_at_each_step(make_config, prompts, responses):
    model = make_config().model
    expected = 0
    for step in range(1, max(responses) + 1):
        alive = [prompt for prompt, response in zip(prompts, responses, strict=True) if response >= step]
        expected += decoded_weight_bytes(model, "fp32") + cache_bytes_per_token(model, "fp32") * sum(
            prompt + step - 1 for prompt in alive
        )
    assert decode_bytes(model, "fp32", prompts, responses) == expected


@pytest.mark.parametrize(("words", "is_packed"), [
    (("model=opt-125m",), True), (("model=opt-125m", "hardware=h100"), False), (("model=opt-tiny",), False),
    (("model=opt-125m", "rollout=hf"), False),
])  # fmt: skip
def test_a_plan_counts_the_weights_that_a_rollout_packs(make_config, words, is_packed):
    config = choose_layout(make_config("hardware=cpu", "rollout.max_new_tokens=64", *words), "ppo").config
    phases = phase_bytes(config, "ppo", Batch(8, 8))
    expected = weight_bytes(config.model, config.precision.dtype) if is_packed else 0
    assert phases["rollout"]["packed"] == phases["evaluate"]["packed"] == expected
    assert "packed" not in phases["update"]
