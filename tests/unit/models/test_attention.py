"""Attention over rows of sequences, against transformers' own on each sequence alone."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from support.rounding import assert_close, assert_same_gradients
from support.tiny_models import policy_engine
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoConfig, MistralConfig, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf.catalog.families import FAMILIES
from rlhf.models import attention as attention_module
from rlhf.models.attention import attention, extend_attention, takes_packed
from rlhf.models.families import build_hf_config
from rlhf.models.load import build_on_meta

pytestmark = pytest.mark.rounding

LENGTHS = (9, 1, 14, 5, 9)
SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "initializer_range": 0.4,
}  # fmt: skip
# Shapes with grouped heads; of the last four the window is shorter than most sequences; a cap that bends scores.
SHAPES = {
    "grouped": MistralConfig(**SMALL, sliding_window=None),
    "windowed": MistralConfig(**SMALL, sliding_window=4),
    "half windowed": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "capped": Gemma2Config(
        **SMALL, head_dim=8, query_pre_attn_scalar=8, sliding_window=4, attn_logit_softcapping=1.5, pad_token_id=0
    ),
    "local": GPTNeoConfig(
        **(SMALL | {"initializer_range": 0.2}), attention_types=[[["global", "local"], 1]], window_size=4
    ),  # its scores are not divided by the root of the width
}


def model_of(settings, attn="eager"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(settings), attn_implementation=attn)


def row_of(sequences):
    return {
        "input_ids": torch.cat(sequences)[None],
        "position_ids": torch.cat([torch.arange(len(ids)) for ids in sequences])[None],
        "attention_mask": torch.tensor([len(ids) for ids in sequences]).view(1, 1, 1, -1),
        "use_cache": False,
    }


def drawn(seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 60, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_gives_what_each_sequence_gives_alone_by_plain_attention(name):
    plain, ours = model_of(SHAPES[name]), model_of(SHAPES[name])
    extend_attention(ours)
    assert takes_packed(ours)
    expected = torch.cat([plain(input_ids=ids[None], use_cache=False).logits[0] for ids in drawn()])
    found = ours(**row_of(drawn())).logits[0]
    assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for logits in (expected, found):
        (logits * weights).mean().backward()
    assert_same_gradients([p.grad for p in ours.parameters()], [p.grad for p in plain.parameters()])


@pytest.mark.parametrize("name", SHAPES)
def test_padded_sequences_too(name):
    plain, ours = model_of(SHAPES[name]), model_of(SHAPES[name])
    extend_attention(ours)
    ids, mask = torch.stack([drawn()[0], drawn()[4]]), torch.tensor([[0, 0] + [1] * 7, [1] * 9])
    inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    expected, found = (model(input_ids=ids, **inputs).logits[mask.bool()] for model in (plain, ours))
    assert_close(found, expected)
    following = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    again = {"attention_mask": following, "position_ids": following.sum(1, keepdim=True) - 1, "use_cache": True}
    expected, found = (
        model(
            input_ids=ids[:, :1],
            past_key_values=model(input_ids=ids, **inputs, use_cache=True).past_key_values,
            **again,
        ).logits
        for model in (plain, ours)
    )
    assert_close(found, expected)


@pytest.mark.parametrize("name", SHAPES)
def test_a_sequence_never_changes_another(name):
    ours = model_of(SHAPES[name])
    extend_attention(ours)
    sequences = drawn()
    before = ours(**row_of(sequences)).logits[0].split(LENGTHS)
    sequences[2] = drawn(seed=7)[2]
    after = ours(**row_of(sequences)).logits[0].split(LENGTHS)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True, True]


def test_what_holds_no_lengths_is_transformers_own_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(3))
    module = torch.nn.Module()
    module.is_causal = True
    seen = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6)
    for mask in (None, seen, torch.zeros(2, 1, 6, 6).masked_fill(~seen, -1e9)):
        expected = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)[0]
        assert torch.equal(attention(module, query, key, value, mask, scaling=0.3)[0], expected)


def test_the_kernel_for_gpus_is_asked_for_the_same(monkeypatch):
    """Of what only a GPU has, what it is asked for: grouped heads repeated, boundaries, the window and the scale."""
    settings = SHAPES["windowed"]
    ours, asked = model_of(settings), []
    extend_attention(ours)
    expected = ours(**row_of(drawn())).logits

    def kernel(query, key, value, begins, ends, longest, other, *, scale, window_size):
        """Its contract, by a mask over the whole row."""
        asked.append((begins.tolist(), longest, window_size))
        assert query.shape == key.shape == value.shape == (sum(LENGTHS), 4, 8) and begins is ends and longest == other
        number = torch.repeat_interleave(torch.arange(len(LENGTHS)), ends.diff())
        places = torch.arange(sum(LENGTHS))
        back = places[:, None] - places
        seen = (number[:, None] == number) & (back >= -window_size[1])
        seen &= back <= window_size[0] if window_size[0] >= 0 else True
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)

    monkeypatch.setattr(attention_module, "has_kernel", lambda device, dtype, width: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    assert_close(ours(**row_of(drawn())).logits, expected)
    assert asked == [([0, 9, 10, 24, 29, 38], 14, (3, 0))] * 2
    ours.config.sliding_window = None
    for layer in ours.model.layers:
        layer.self_attn.config.sliding_window = None
    ours(**row_of(drawn()))
    assert asked[-1][2] == (-1, 0)  # which torch takes for causal


def test_the_kernels_names_are_torchs():
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    assert list(names)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_stay_on_the_host(make_config, family):
    """A mask on another device than the model's would be moved or refused by what looks at it: nothing does."""
    config = make_config(f"model={family.replace('_', '-')}-tiny")
    ours = build_on_meta(AutoModelForCausalLM, build_hf_config(config.model), config, trust_remote_code=False)
    extend_attention(ours)
    if takes_packed(ours):
        row = row_of(drawn())
        row |= {name: row[name].to("meta") for name in ("input_ids", "position_ids")}
        assert ours(**row).logits.shape == (1, sum(LENGTHS), 768)


def test_families_that_read_rows_are_known(make_config, tokenizer):
    found = {
        family: takes_packed(policy_engine(make_config(f"model={family}-tiny"), tokenizer))
        for family in ("opt", "bloom", "gpt-neo", "gemma2", "llama")
    }
    assert found == {"opt": True, "bloom": False, "gpt-neo": True, "gemma2": True, "llama": True}


def test_what_is_saved_says_nothing_of_it_and_is_loaded_again(tmp_path):
    ours = model_of(SHAPES["capped"])
    extend_attention(ours)
    ours.save_pretrained(tmp_path)
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_config(ours.config)):
        extend_attention(again)
        assert takes_packed(again)
    assert "sdpa" not in (tmp_path / "config.json").read_text()
    assert sorted(os.listdir(tmp_path)) == ["config.json", "generation_config.json", "model.safetensors"]


def test_other_models_of_the_process_are_as_they_were(tmp_path):
    """Building and extending a model of ours leaves transformers' tables and classes alone."""
    code = """
import torch, transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.gpt_neo import modeling_gpt_neo as neo
from transformers.models.gemma2 import modeling_gemma2 as gemma

def state():
    flags = [(kind.__name__, kind._supports_sdpa, kind._supports_attention_backend)
             for kind in (neo.GPTNeoPreTrainedModel, gemma.Gemma2PreTrainedModel)]
    named = [dict(table._global_mapping) for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]
    return flags, named, dict(neo.GPT_NEO_ATTENTION_CLASSES), torch.nn.functional.scaled_dot_product_attention

before = state()
from rlhf.models.attention import extend_attention
small = dict(hidden_size=8, num_layers=2, num_heads=2, vocab_size=9, attention_types=[[["global", "local"], 1]])
model = transformers.AutoModelForCausalLM.from_config(transformers.GPTNeoConfig(**small))
plain = transformers.AutoModelForCausalLM.from_config(transformers.GPTNeoConfig(**small))
extend_attention(model)
after = state()
assert after[0] == before[0] and after[3] is before[3]
for old, new in zip(before[1] + [before[2]], after[1] + [after[2]]):
    changed = {name for name in new if old.get(name) is not new[name]}
    assert changed <= {"rlhf"} | ({"eager"} if transformers.__version__ < "5.24" else set()), changed
assert type(plain.transformer.h[0].attn.attention) is neo.GPTNeoSelfAttention
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
