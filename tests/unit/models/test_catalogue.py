"""The catalogue of models in conf/model: each file against the model that transformers builds of its shape, without memory
for weights and without the network."""

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from rlhf.catalog.families import FAMILIES
from rlhf.config.compose import config_root
from rlhf.config.schema import Model
from rlhf.models.families import build_hf_config, shape_of

FILES = {file.stem: file for file in sorted((config_root() / "conf" / "model").glob("*.yaml"))}
LOCAL = FILES.pop("local")
# Family: names before the size, and the sizes.
SIZES = {
    "opt": {"opt": "125m 350m 1.3b 2.7b 6.7b 13b 30b 66b 175b tiny", "opt-tiny": "1-layer 4-layers"},
    "bloom": {"bloom": "560m 1b1 1b7 3b 7b1 176b tiny"},
    "gpt_neox": {"pythia": "70m 160m 410m 1b 1.4b 2.8b 6.9b 12b", "gpt-neox": "20b tiny", "dolly-v2": "3b 7b 12b"},
    "gptj": {"gpt-j": "6b", "gptj": "tiny"},
    "gpt_neo": {"gpt-neo": "125m 1.3b 2.7b tiny"},
    "gpt2": {"gpt2": "medium large xl tiny"},
    "codegen": {"codegen": "350m 2b 6b 16b tiny"},
    "llama": {
        "llama-2": "7b 13b 70b", "llama-3": "8b", "llama-3.1": "8b 70b", "llama-3.2": "1b 3b", "llama": "tiny",
        "smollm2": "135m 360m 1.7b",
    },
    "qwen2": {"qwen2.5": "0.5b 1.5b 3b 7b 14b 32b 72b", "qwen2": "tiny"},
    "qwen3": {"qwen3": "0.6b 1.7b 4b 8b 14b 32b tiny"},
    "mistral": {"mistral": "7b tiny"},
    "gemma2": {"gemma-2": "2b 9b", "gemma2": "tiny"},
}  # fmt: skip
FAMILY = {"gpt2": "gpt2"} | {
    f"{start}-{size}": family for family, names in SIZES.items() for start, sizes in names.items() for size in sizes.split()
}
every_model = pytest.mark.parametrize("name", FILES)


@cache
def stated(name):
    """What the file itself states."""
    values = OmegaConf.load(FILES[name])
    assert values.pop("defaults") == ["local", "_self_"]
    return values


@cache
def local():
    """The file that all others build on."""
    return OmegaConf.load(LOCAL)


@cache
def shape(name):
    """The file on top of local.yaml, as Hydra composes it."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Model), local(), stated(name)))


def test_the_catalogue_holds_these_models_and_no_others():
    assert sorted(FILES) == sorted(FAMILY)
    assert set(FAMILY.values()) == set(FAMILIES)


@every_model
def test_a_file_is_called_what_it_says_and_its_parts_fit(name):
    model = shape(name)
    assert model.name == name
    assert model.family == FAMILY[name]
    assert model.num_attention_heads % model.num_key_value_heads == 0
    assert model.num_hidden_layers > 0 and model.intermediate_size >= model.hidden_size // 2
    if model.family not in ("qwen3", "gemma2"):  # the two whose heads together need not be as wide as the model
        assert model.num_attention_heads * model.head_dim == model.hidden_size


@every_model
def test_a_file_states_only_what_differs_and_in_the_order_of_local_yaml(name):
    rest = {key: value for key, value in stated(name).items() if key not in ("num_key_value_heads", "word_embed_proj_dim")}
    assert [key for key in local() if key in stated(name)] == list(stated(name))
    assert [key for key, value in rest.items() if value == local()[key]] == []
    assert stated(name).get("num_key_value_heads") != stated(name).num_attention_heads
    assert stated(name).get("word_embed_proj_dim") != stated(name).hidden_size


@every_model
def test_parameters_are_those_of_the_model_that_transformers_builds(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(build_hf_config(shape(name)))
    counted = sum(weight.numel() for weight in model.parameters())  # a shared one once
    assert shape(name).num_parameters == pytest.approx(counted, rel=0.005)


@every_model
def test_the_shape_of_the_configuration_that_transformers_builds_is_the_one_of_the_file(name):
    found = shape_of(build_hf_config(shape(name)))
    assert found == {key: getattr(shape(name), key) for key in found}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("-tiny")])
def test_tiny_models_have_random_weights_and_fit_a_laptop(name):
    model = shape(name)
    assert model.path is None
    assert model.num_parameters < 1_000_000
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.head_dim) == (2, 64, 4, 16)
    assert (model.vocab_size, model.max_position_embeddings) == (768, 256)


def test_only_tiny_models_and_opt_175b_have_no_weights_on_the_hub():
    assert [name for name in FILES if shape(name).path is None and "-tiny" not in name] == ["opt-175b"]
