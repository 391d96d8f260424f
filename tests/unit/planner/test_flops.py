from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.quick import mark_slow

from rlhf.config.schema import Lora, Model
from rlhf.planner.flops import forward_flops, generation_flops, matrices, training_flops

# A large one of each family in conf/model, and OPT's odd one.
LARGE = (
    "opt-350m", "opt-66b", "bloom-7b1", "gpt-neox-20b", "gpt-j-6b", "gpt-neo-2.7b", "gpt2-xl", "codegen-16b",
    "llama-3.1-70b", "qwen2.5-72b", "qwen3-32b", "mistral-7b", "gemma-2-9b",
)  # fmt: skip
GROUPED = ("llama", "qwen2", "qwen3", "mistral", "gemma2")
UNGROUPED = ("opt", "bloom", "gpt_neox", "gptj", "gpt_neo", "gpt2", "codegen")
# Every family in small, and shapes that only some can have.
SHAPES = {family: {} for family in UNGROUPED + GROUPED} | {
    "opt, narrow embedding and norm last": {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "gpt2, untied": {"tie_word_embeddings": False},
    "llama, one key-value head and untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "qwen3, wide heads": {"head_dim": 40},
    "gemma2, three layers": {"num_hidden_layers": 3},
}
DROPOUTS = ("dropout", "hidden_dropout", "resid_pdrop", "resid_dropout")
LENGTH, ROWS = 12, 2
lengths = st.lists(st.integers(1, 300), max_size=5)


def lora(rank=4, only=True, targets="auto"):
    rest = {"alpha": 8, "dropout": 0.1, "learning_rate": None, "save_merged": True}
    return Lora(rank=rank, only=only, target_modules=targets, **rest)


# Modes of training: adapters, gradient checkpointing, dropout.
MODES = {
    "all weights": (None, False, 0.0),
    "all weights, checkpointing": (None, True, 0.0),
    "all weights, checkpointing and dropout": (None, True, 0.1),
    "adapters": (lora(), False, 0.0),
    "adapters, checkpointing": (lora(), True, 0.0),
    "adapters and weights": (lora(only=False), False, 0.0),
    "adapters and weights, checkpointing": (lora(only=False), True, 0.0),
}


# Counted whenever tests run: each part of a mode once.
OFTEN = ("all weights, checkpointing and dropout", "adapters", "adapters and weights, checkpointing")
# Counted whenever tests run, where each case takes long: layers of different names, projections, grouped heads.
FEW = ("opt, narrow embedding and norm last", "gpt2", "gptj", "llama")


def tiny(name="opt", **changes):
    """2 layers, 64 wide, 4 heads, 768 rows of embedding; 256 in the feed-forward or, gated, 176."""
    family = name.split(",")[0]
    gated = family in GROUPED
    shape = {
        "name": name, "family": family, "path": None, "revision": None, "gguf_file": None, "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2 if gated else 4, "head_dim": 16,
        "intermediate_size": 176 if gated else 256, "gated_mlp": gated,
        "word_embed_proj_dim": 64, "do_layer_norm_before": True, "vocab_size": 768, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "num_parameters": 0,
        "trust_remote_code": False,
    }  # fmt: skip
    return Model(**shape | SHAPES[name] | changes)


@pytest.fixture(scope="module")
def projected(make_config):
    """24 layers, 1024 wide, 4096 in the feed-forward, 50272 rows of an embedding that is 512 wide."""
    return make_config("model=opt-350m").model


def linear_layers(block):
    """Names and shapes (inputs, outputs) of the linear layers in a block of transformers' model."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {
        name: tuple(layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1])
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
    }


def blocks(model):
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def build(shape, adapters=None, checkpointing=False, dropout=0.0, kind="AutoModelForCausalLM"):
    """transformers' model of a shape, prepared for training as rlhf.models.load does it."""
    import transformers
    from peft import LoraConfig, get_peft_model

    from rlhf.models.families import build_hf_config

    settings = build_hf_config(shape, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    for name in DROPOUTS:
        if hasattr(settings, name):
            setattr(settings, name, dropout)
    model = getattr(transformers, kind).from_config(settings, attn_implementation="eager")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if adapters is None:
        return model
    every = sorted({name.rsplit(".", 1)[-1] for name in linear_layers(blocks(model)[0])})
    targets = every if adapters.target_modules == "auto" else adapters.target_modules
    plan = LoraConfig(
        r=adapters.rank, lora_alpha=adapters.alpha, lora_dropout=adapters.dropout, target_modules=targets,
        fan_in_fan_out=shape.family == "gpt2",
    )  # fmt: skip
    adapted = get_peft_model(model, plan)
    return adapted if adapters.only else adapted.requires_grad_(True)


def counted(model, train):
    """PyTorch's own count of a forward pass over ROWS sequences of LENGTH tokens, or of a forward and a backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device=model.device)
    with FlopCounterMode(display=False) as counter:
        outputs = model.train(train)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        if train:
            outputs.sum().backward()
    return counter.get_total_flops()


def near(flops):
    """Exact but for the angles of rotary embeddings, which some versions of transformers multiply as matrices."""
    return pytest.approx(flops, rel=1e-4)


def test_forward_pass_of_opt_tiny_by_hand():
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert weights == 98_304
    body = 2 * weights * (3 + 5)
    attention = 2 * 4 * 64 * (3 * 3 + 5 * 5)
    head = 4 * 2 * 64 * 768
    assert forward_flops(tiny(), [3, 5], 4) == body + attention + head == 1_983_488
    assert forward_flops(tiny(), [3, 5], 0) == 1_572_864 + 17_408


def test_forward_pass_of_opt_350m_counts_the_projections_of_the_embedding(projected):
    weights = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 1024 * 512
    assert weights == 303_038_464
    body = 2 * weights * 10
    attention = 24 * 4 * 1024 * 10 * 10
    head = 2 * 512 * 50_272
    assert forward_flops(projected, [10], 1) == body + attention + head == 6_122_078_208


def test_forward_pass_of_llama_tiny_by_hand():
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176)
    assert weights == 92_160
    assert forward_flops(tiny("llama"), [10], 0) == 2 * weights * 10 + 2 * 4 * 64 * 100
    assert forward_flops(tiny("llama"), [10], 1) == forward_flops(tiny("llama", tie_word_embeddings=False), [10], 1)


def test_training_of_adapters_by_hand():
    """OPT-tiny, adapters of rank 3 on the value projection alone: 6 x 64 weights each. The first layer's queries, keys and
    value weights have no gradient at all, its attention only that of the values."""
    value = lora(rank=3, targets=["v_proj"])
    forward = forward_flops(tiny(), [10], 10) + 2 * 10 * 2 * 3 * 128
    assert forward_flops(tiny(), [10], 10, value) == forward
    first = 10 * 2 * (64 * 64 + 2 * 64 * 256 + 3 * (64 + 2 * 64)) + 2 * 64 * 100
    second = 10 * 2 * (4 * 64 * 64 + 2 * 64 * 256 + 3 * (2 * 64 + 2 * 64)) + 8 * 64 * 100
    head = 10 * 2 * 64 * 768
    assert training_flops(tiny(), [10], 10, value) == forward + first + second + head


@given(lengths, lengths)
def test_sequences_add_up_and_are_not_padded_to_the_longest(first, second):
    model = tiny()
    assert forward_flops(model, first + second, 7) == forward_flops(model, first, 3) + forward_flops(model, second, 4)
    assert forward_flops(model, iter([1, 300]), 0) < forward_flops(model, [300, 300], 0) * 0.51
    for mode in MODES.values():
        parts = training_flops(model, first, 3, *mode) + training_flops(model, second, 4, *mode)
        assert training_flops(model, iter(first + second), 7, *mode) == parts


@given(st.sampled_from(sorted(SHAPES)), lengths.filter(len), st.integers(0, 100), st.integers(1, 8))
def test_backward_pass_costs_two_forward_passes_at_most_and_recomputation_one_more(name, sizes, logits, rank):
    model = tiny(name)
    forward, full = forward_flops(model, sizes, logits), training_flops(model, sizes, logits)
    assert full == training_flops(model, sizes, logits, lora(rank=0)) == 3 * forward
    assert 3.3 * forward_flops(model, sizes, 0) < training_flops(model, sizes, 0, checkpointing=True) <= 4 * forward
    adapted = forward_flops(model, sizes, logits, lora(rank))
    assert 1.5 * adapted < training_flops(model, sizes, logits, lora(rank)) < 2.5 * adapted < full
    assert training_flops(model, sizes, logits, lora(rank, only=False)) == 3 * adapted > full


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
    adapters = 24 * 2 * 2 * (4 * 2048 + 2 * 5120) * sum(prompt + response - 1 for prompt, response in pairs)
    assert generation_flops(projected, prompts, responses, lora(rank=2)) == expected + adapters


def test_generation_refuses_prompts_without_responses():
    with pytest.raises(ValueError, match="shorter"):
        generation_flops(tiny(), [3, 4], [2])


@pytest.mark.parametrize("name", SHAPES)
def test_matrices_are_the_linear_layers_of_transformers_blocks(name):
    shape = tiny(name)
    found = [linear_layers(block) for block in blocks(build(shape))]
    assert found == shape.num_hidden_layers * [{matrix.name: (matrix.inputs, matrix.outputs) for matrix in matrices(shape)}]


@pytest.mark.parametrize("name", SHAPES)
def test_forward_pass_is_what_pytorch_counts(name):
    shape, sizes = tiny(name), ROWS * [LENGTH]
    plain, adapted = (counted(build(shape, adapters), train=False) for adapters in (None, lora()))
    assert forward_flops(shape, sizes, sum(sizes)) == near(plain)
    assert forward_flops(shape, sizes, sum(sizes), lora()) == near(adapted)
    assert adapted > 1.01 * plain


@pytest.mark.parametrize("mode", mark_slow(MODES, OFTEN))
@pytest.mark.parametrize("name", SHAPES)
def test_training_is_what_pytorch_counts(name, mode):
    measured = counted(build(tiny(name), *MODES[mode]), train=True)
    assert training_flops(tiny(name), ROWS * [LENGTH], ROWS * LENGTH, *MODES[mode]) == near(measured)


@pytest.mark.parametrize("checkpointing", mark_slow([False, True], [True]))
@pytest.mark.parametrize("name", mark_slow(SHAPES, FEW))
def test_adapters_on_some_layers_are_what_pytorch_counts(name, checkpointing):
    shape = tiny(name)
    leaves = {matrix.name.rsplit(".", 1)[-1] for matrix in matrices(shape)}
    twice = {"attn.c_proj", "mlp.c_proj"} if shape.family == "gpt2" else set()  # two of its layers are named c_proj
    for end in sorted(leaves | twice):
        adapters = lora(targets=[end])
        measured = counted(build(shape, adapters, checkpointing), train=True)
        assert training_flops(shape, ROWS * [LENGTH], ROWS * LENGTH, adapters, checkpointing) == near(measured), end


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["opt", "opt, narrow embedding and norm last", "gptj", "llama"])
def test_training_without_logits_is_what_pytorch_counts_of_a_body_without_head(name, mode):
    measured = counted(build(tiny(name), *MODES[mode], kind="AutoModel"), train=True)
    assert training_flops(tiny(name), ROWS * [LENGTH], 0, *MODES[mode]) == near(measured)


@pytest.mark.parametrize("name", SHAPES)
def test_modes_of_training_differ_so_that_a_wrong_one_would_be_seen(name):
    """By ten times the tolerance. Dropout is no work where a norm follows the last layer, or the family has none there."""
    work = {mode: training_flops(tiny(name), ROWS * [LENGTH], ROWS * LENGTH, *args) for mode, args in MODES.items()}
    alike = [pair for pair in combinations(MODES, 2) if work[pair[0]] == pytest.approx(work[pair[1]], rel=1e-3)]
    without = tiny(name).gated_mlp or not tiny(name).do_layer_norm_before
    assert alike == [("all weights, checkpointing", "all weights, checkpointing and dropout")] * without


@pytest.mark.parametrize("size", mark_slow(LARGE, ["opt-66b", "gemma-2-9b"]))
def test_forward_pass_of_large_models_is_what_pytorch_counts(make_config, size):
    """The model that transformers builds of the configuration's shape, without memory for its weights."""
    import torch

    shape = make_config(f"model={size}").model
    with torch.device("meta"):
        model = build(shape)
    assert forward_flops(shape, ROWS * [LENGTH], ROWS * LENGTH) == near(counted(model, train=False))
