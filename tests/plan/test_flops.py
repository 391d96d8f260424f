import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.compose import config_root
from rlhf.plan.flops import forward_flops, generation_flops, training_flops

SIZES = sorted(file.stem for file in (config_root() / "conf" / "model").glob("opt-*.yaml"))
lengths = st.lists(st.integers(1, 300), max_size=5)


@pytest.fixture(scope="module")
def tiny(make_config):
    """2 layers, 64 wide, 256 in the feed-forward, 768 rows of embedding."""
    return make_config("model=opt-tiny").model


@pytest.fixture(scope="module")
def projected(make_config):
    """24 layers, 1024 wide, 4096 in the feed-forward, 50272 rows of an embedding that is 512 wide."""
    return make_config("model=opt-350m").model


def test_forward_pass_of_opt_tiny_by_hand(tiny):
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert weights == 98_304
    body = 2 * weights * (3 + 5)
    attention = 2 * 4 * 64 * (3 * 3 + 5 * 5)
    head = 4 * 2 * 64 * 768
    assert forward_flops(tiny, [3, 5], 4) == body + attention + head == 1_983_488
    assert forward_flops(tiny, [3, 5], 0) == 1_572_864 + 17_408


def test_forward_pass_of_opt_350m_counts_the_projections_of_the_embedding(projected):
    weights = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 1024 * 512
    assert weights == 303_038_464
    body = 2 * weights * 10
    attention = 24 * 4 * 1024 * 10 * 10
    head = 2 * 512 * 50_272
    assert forward_flops(projected, [10], 1) == body + attention + head == 6_122_078_208


@given(lengths, lengths)
def test_sequences_add_up_and_are_not_padded_to_the_longest(tiny, first, second):
    assert forward_flops(tiny, first + second, 7) == forward_flops(tiny, first, 3) + forward_flops(tiny, second, 4)
    assert forward_flops(tiny, iter([1, 300]), 0) < forward_flops(tiny, [300, 300], 0) * 0.51


def test_backward_pass_costs_two_forward_passes_and_recomputation_one_more():
    assert training_flops(10, checkpointing=False) == 30
    assert training_flops(10, checkpointing=True) == 40


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=4))
def test_generation_is_the_prompt_and_then_single_tokens(projected, pairs):
    expected = 0
    for prompt, response in pairs:
        expected += forward_flops(projected, [prompt], 1)
        for context in range(prompt + 1, prompt + response):  # a token attends to those before it and to itself
            weights = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 1024 * 512
            expected += 2 * weights + 24 * 4 * 1024 * context + 2 * 512 * 50_272
    prompts, responses = zip(*pairs, strict=True)
    assert generation_flops(projected, prompts, responses) == expected


def test_generation_refuses_prompts_without_responses(tiny):
    with pytest.raises(ValueError, match="shorter"):
        generation_flops(tiny, [3, 4], [2])


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_flops_are_those_of_transformers_model(size):
    """The model that transformers builds of the configuration's shape, without memory for its weights."""
    import torch
    from omegaconf import OmegaConf
    from transformers import AutoModelForCausalLM, OPTConfig

    from rlhf.config.schema import Model

    shape = Model(**OmegaConf.load(config_root() / "conf" / "model" / f"{size}.yaml"))
    config = OPTConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers, ffn_dim=shape.ffn,
        num_attention_heads=shape.heads, max_position_embeddings=shape.positions, word_embed_proj_dim=shape.embedding,
        do_layer_norm_before=shape.norm_first,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.005)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))  # the head included
    without_attention = forward_flops(shape, [1], 1) - 4 * shape.layers * shape.width
    assert without_attention == 2 * matrices
    assert shape.name == size
    assert shape.width % shape.heads == 0
