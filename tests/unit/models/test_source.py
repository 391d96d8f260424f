"""What is said of models before anything large is loaded: where they are, their shape, and whether they can be used."""

import json
import re
import shutil
import socket
import threading
import time
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from support.gguf_files import write_gguf
from support.quick import mark_slow
from support.tiny_models import save_models

from rlhf.catalog.families import FAMILIES
from rlhf.cli.prepare import check_sources, load_config
from rlhf.config import hub as hub_module
from rlhf.config.errors import ConfigError
from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result
from rlhf.models.families import build_hf_config
from rlhf.models.load import load_policy, new_policy
from rlhf.models.preflight import check_source
from rlhf.models.source import Source, fill_shape, fill_shapes, load_hf_config, source_of
from rlhf.models.tokenizer import load_tokenizer
from rlhf.runtime.distributed import start


def look(config, planned):
    """What happens to the stages that are not done before the first one starts."""
    for node in planned:
        if not node.directory.done:
            check_sources(config, node)


# What a saved configuration does not tell: where it came from.
ORIGIN = {"name", "path"}


@pytest.fixture(scope="module")
def saved(make_config, tokenizer, tmp_path_factory):
    """A policy and a reward model on disk."""
    return tuple(map(Path, save_models(make_config(), tokenizer, tmp_path_factory.mktemp("models"))))


@pytest.fixture
def actor(saved, tmp_path):
    """A copy of the policy that a test may change."""
    return Path(shutil.copytree(saved[0], tmp_path / "actor"))


def save_policy(config, tokenizer, place):
    """A random policy of the configuration's shape on disk, with its tokenizer."""
    start(config)
    new_policy(config.model, config, tokenizer, config.zero, 0.0).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def refused(place, config, key="ppo.actor", scorer=False, declared=None, **source):
    """The one line that says why a model is refused."""
    with pytest.raises(ConfigError) as error:
        check_source(Source(str(place), key, **source), config, scorer, declared)
    message = str(error.value)
    assert message.startswith(f"{key}={place}: ") and "\n" not in message and "; " in message
    return message


def change(file, **values):
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# --- reaching the hub


@pytest.fixture
def hub(monkeypatch):
    """Let the hub be asked, at an address of the test's."""

    def at(address):
        hub_module.forget_problems()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)

    yield at
    hub_module.forget_problems()


class NotFound(BaseHTTPRequestHandler):
    """A hub that has no model."""

    asked = 0

    def do_GET(self):
        type(self).asked += 1
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        """Nothing on the screen."""


def test_a_hub_that_has_no_address_is_told_within_seconds(make_config, hub):
    hub("http://no-such-host.invalid")
    started = time.time()
    message = refused("org/no-such-model", make_config())
    assert time.time() - started < 10
    assert "neither a directory nor in the cache, and the hub is out of reach" in message and "or a hub id" in message


def test_a_hub_that_never_answers_is_not_waited_for(make_config, hub, monkeypatch):
    """Asked once: what is not found out in REACH_S is not found out."""
    assert hub_module.REACH_S <= 5
    monkeypatch.setattr(hub_module, "REACH_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.time()
        assert "timed out" in refused("org/no-such-model", make_config())
        assert time.time() - started < 2


def test_a_hub_that_has_no_such_model_is_asked_once(make_config, hub):
    server = HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub(f"http://127.0.0.1:{server.server_port}")
    assert "404" in refused("org/no-such-model", make_config())
    server.shutdown()
    assert NotFound.asked == 1


def test_without_the_hub_a_name_that_is_not_in_the_cache_says_so(make_config, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("org/no-such-model", make_config())


@pytest.mark.parametrize("path", ["my/own/model", "output/stages/sft-0123/model", "a model", "model/", "-x"])
def test_a_mistyped_directory_that_is_no_hub_id_either_is_one_line(make_config, path):
    assert "give a directory" in refused(path, make_config())


def test_a_tokenizer_that_cannot_be_reached_is_told_too():
    with pytest.raises(ConfigError, match=r"^ppo\.reward=org/no-such-model: "):
        load_tokenizer("org/no-such-model", "ppo.reward")


def test_a_home_directory_may_be_abbreviated(make_config, saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parent))
    check_source(Source("~/actor", "ppo.actor"), make_config(), scorer=False)


# --- directories


def test_models_that_can_be_used_pass(make_config, saved):
    config = make_config()
    check_source(Source(str(saved[0]), "ppo.actor"), config, scorer=False)
    check_source(Source(str(saved[0]), "model.path"), config, scorer=False, declared=config.model)
    check_source(Source(str(saved[1]), "ppo.reward"), config, scorer=True)


def test_a_directory_without_a_configuration_is_refused(make_config, tmp_path):
    assert "it cannot be loaded" in refused(tmp_path, make_config())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-type"}'])
def test_a_configuration_that_cannot_be_read_is_refused(make_config, actor, text):
    (actor / "config.json").write_text(text)
    assert "it cannot be loaded" in refused(actor, make_config())


@pytest.mark.parametrize("name", ("tokenizer.json", "tokenizer_config.json", "generation_config.json"))
def test_a_file_that_is_cut_off_is_refused(make_config, actor, name):
    file = actor / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert re.search("cannot be read|no tokenizer can be loaded", refused(actor, make_config()))


@pytest.mark.parametrize("kind", ["resnet", "clip", "vit", "t5"])
def test_a_model_that_is_no_language_model_is_refused(make_config, actor, kind):
    """Where its shape is asked for; T5 has all that a shape consists of, but reads and writes apart."""
    (actor / "config.json").write_text(json.dumps({"model_type": kind}))
    config = make_config("model=local", f"model.path={actor}", "reward_model=opt-tiny")
    with pytest.raises(ConfigError, match=r"^model\.path=") as error:
        fill_shapes(config)
    assert "\n" not in str(error.value)
    if kind != "t5":
        refused(actor, make_config())


def test_a_directory_without_weights_is_refused(make_config, actor):
    (actor / "model.safetensors").unlink()
    assert "the directory holds no weights; give one with model.safetensors" in refused(actor, make_config())


@pytest.mark.parametrize("damage", [b"", b"not a model", None])
@pytest.mark.parametrize("scorer", [False, True])
def test_a_damaged_file_of_weights_is_refused(make_config, actor, damage, scorer):
    """None: the end is missing, as of a download that broke off."""
    file = actor / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    message = refused(actor, make_config(), scorer=scorer)
    assert "its weights cannot be read" in message and "copy or download the model again" in message


@pytest.mark.parametrize("index", ["{", "{}"])
def test_a_damaged_index_of_weights_is_refused(make_config, actor, index):
    (actor / "model.safetensors").rename(actor / "model-00001-of-00001.safetensors")
    (actor / "model.safetensors.index.json").write_text(index)
    assert "its weights cannot be read" in refused(actor, make_config())


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(make_config, tokenizer, tmp_path):
    rows = len(tokenizer)
    config = make_config(f"model.vocab_size={rows}", f"data.tokenizer_vocab_size={rows}")
    save_policy(config, tokenizer, tmp_path)
    check_source(Source(str(tmp_path), "ppo.actor"), config, scorer=False)
    larger = load_tokenizer(str(tmp_path), "ppo.actor")
    larger.add_tokens(["one more"])
    larger.save_pretrained(tmp_path)
    assert f"its tokenizer has {rows + 1} tokens, its embedding only {rows} rows" in refused(tmp_path, config)


def test_a_padding_token_that_was_added_needs_no_row(make_config, tokenizer, tmp_path):
    """Padding is replaced by a valid id before a forward pass."""
    rows = len(tokenizer)
    config = make_config(f"model.vocab_size={rows}", f"data.tokenizer_vocab_size={rows}")
    save_policy(config, tokenizer, tmp_path)
    without = load_tokenizer(str(tmp_path), "ppo.actor")
    without.pad_token = without.eos_token
    without.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path), "ppo.actor").pad_token_id == rows
    check_source(Source(str(tmp_path), "ppo.actor"), config, scorer=False)


def test_a_tokenizer_without_end_of_text_is_refused(make_config, actor):
    change(actor / "tokenizer_config.json", eos_token=None)
    assert "its tokenizer has no end-of-text token" in refused(actor, make_config())


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "gpt-neox", "qwen2", "gemma2"])
def test_a_model_without_a_tokenizer_is_refused(make_config, actor, family):
    """transformers gives some families one without a single token of text, which encodes everything as nothing."""
    for file in actor.glob("tokenizer*"):
        file.unlink()
    build_hf_config(make_config(f"model={family}-tiny").model, pad_token_id=0, eos_token_id=1).save_pretrained(actor)
    assert "tokenizer" in refused(actor, make_config())


def test_a_reward_model_without_its_head_is_refused(make_config, saved):
    message = refused(saved[0], make_config(), "ppo.reward", scorer=True)
    assert "no weights for score.weight; give a sequence classifier with one label" in message


@pytest.mark.parametrize("key", ["ppo.actor", "model.path"])
def test_a_reward_model_is_no_language_model(make_config, saved, key):
    message = refused(saved[1], make_config(), key)
    assert "it is a reward model, not a language model; give a language model" in message


def test_a_reward_model_may_be_trained_further(make_config, saved):
    """Its head is drawn anew."""
    config = make_config()
    check_source(Source(str(saved[1]), "reward_model.path"), config, scorer=False, declared=config.reward_model)


def test_heads_are_found_in_models_of_several_files(make_config, saved, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config, kinds = make_config(), (AutoModelForCausalLM, AutoModelForSequenceClassification)
    for kind, place, name in zip(kinds, saved, ("actor", "reward"), strict=True):
        shutil.copytree(place, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        kind.from_pretrained(place).save_pretrained(tmp_path / name, max_shard_size="100KB")
        assert (tmp_path / name / "model.safetensors.index.json").is_file()
    check_source(Source(str(tmp_path / "actor"), "ppo.actor"), config, scorer=False)
    check_source(Source(str(tmp_path / "reward"), "ppo.reward"), config, scorer=True)
    refused(tmp_path / "actor", config, "ppo.reward", scorer=True)
    refused(tmp_path / "reward", config, "ppo.actor")


def test_too_few_positions_are_refused_but_not_of_bloom(make_config, actor, tokenizer, tmp_path):
    config = make_config("data.max_response_tokens=300")
    message = refused(actor, config)
    assert "it has 256 positions, but prompt and response reach 364 tokens; lower data.max_prompt_tokens" in message
    bloom = save_policy(make_config("model=bloom-tiny"), tokenizer, tmp_path / "bloom")
    check_source(Source(str(bloom), "ppo.actor"), config, scorer=False)
    change(bloom / "config.json", seq_length=8, max_position_embeddings=8)
    check_source(Source(str(bloom), "ppo.actor"), config, scorer=False)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 3), ("hidden_size", 128), ("num_attention_heads", 8)])
def test_another_shape_than_declared_is_refused(make_config, saved, key, value):
    config = make_config()
    has = getattr(config.model, key)
    setattr(config.model, key, value)
    message = refused(saved[0], config, "model.path", declared=config.model)
    assert f"it has {key}={has}, unlike model=opt-tiny; use model=local model.path=..." in message
    message = refused(saved[1], config, "reward_model.path", declared=config.model)
    assert "use reward_model=local reward_model.path=..." in message


def test_adapters_that_name_no_model_are_refused(make_config, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "its adapters do not say which model they belong to" in refused(tmp_path, make_config(), "ppo.actor")


# --- reading shapes


@pytest.mark.parametrize("family", mark_slow(FAMILIES, ("opt", "gpt2", "qwen3", "gemma2")))
def test_a_model_of_your_own_gets_the_shape_of_its_configuration(make_config, tmp_path, family):
    tiny = make_config(f"model={family.replace('_', '-')}-tiny").model
    build_hf_config(tiny).save_pretrained(tmp_path)
    read = fill_shape(make_config("model=local", f"model.path={tmp_path}").model, "model")
    stated = {key: value for key, value in asdict(tiny).items() if key not in ORIGIN}
    assert {key: value for key, value in asdict(read).items() if key not in ORIGIN} == stated
    assert (read.name, read.path) == ("local", str(tmp_path))


def test_a_family_that_is_not_in_the_list_is_read_too(make_config, tmp_path):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = CONFIG_MAPPING["olmo"](
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=72, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    settings.save_pretrained(tmp_path)
    read = fill_shape(make_config("model=local", f"model.path={tmp_path}").model, "model")
    assert (
        read.family,
        read.num_hidden_layers,
        read.hidden_size,
        read.num_attention_heads,
        read.num_key_value_heads,
        read.head_dim,
    ) == ("other", 3, 32, 4, 2, 8)
    assert (read.intermediate_size, read.vocab_size, read.max_position_embeddings) == (72, 100, 512)
    counted = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(settings).parameters())
    assert read.num_parameters == counted


def test_a_stated_shape_is_not_read_and_a_model_without_a_path_has_none(make_config):
    """opt-125m names a hub model: nothing is asked."""
    for name in ("opt-125m", "opt-tiny", "local"):
        model = make_config(f"model={name}", "ppo.critic=actor").model
        assert fill_shape(model, "model") is model
    config = make_config("model=opt-125m")
    assert fill_shapes(config) == config


def test_an_unreachable_model_of_your_own_names_the_right_key(make_config):
    for key in ("model", "reward_model"):
        with pytest.raises(ConfigError, match=rf"^{key}\.path=org/no-such-model: "):
            fill_shapes(make_config(f"{key}=local", f"{key}.path=org/no-such-model"))


def test_loading_a_configuration_reads_shapes_and_checks_them(saved):
    own = "model=local", f"model.path={saved[0]}", f"reward_model.path={saved[1]}"
    config = load_config(*own)
    assert (config.model.num_hidden_layers, config.model.hidden_size) == (2, 64)
    assert config.reward_model.num_parameters == config.model.num_parameters
    problem = r"^model\.max_position_embeddings=256: prompt and response together reach 364 tokens"
    with pytest.raises(ConfigError, match=problem):
        load_config(*own, "data.max_response_tokens=300")
    with pytest.raises(ConfigError, match=r"^model\.path=null: model=local has no shape of its own"):
        load_config("model=local")


def test_a_model_of_your_own_is_enough_for_a_stage_that_needs_no_other(saved):
    """As conf/model/local.yaml has it: model=local model.path=<directory or hub id>."""
    assert load_config("stage=sft", "model=local", f"model.path={saved[0]}").model.num_hidden_layers == 2
    assert (
        load_config("stage=reward", "reward_model=local", f"reward_model.path={saved[0]}").reward_model.num_hidden_layers
        == 2
    )


# --- all sources of a configuration


@pytest.fixture
def point(make_config, tmp_path):
    """A configuration that writes elsewhere."""
    return make_config(f"output_root={tmp_path}/outputs")


def finish(config, *stages):
    """Declare stages done, with an empty model."""
    for node in build_graph(config):
        if node.stage in stages:
            node.directory.finish(Result(node.stage, node.fingerprint, 1.0, {}))
            node.directory.model.mkdir()


@pytest.mark.parametrize(
    ("key", "stage"), [("model.path", "sft"), ("reward_model.path", "reward"), ("ppo.actor", "ppo"), ("ppo.reward", "ppo"),
                       ("ppo.critic", "ppo")],
)  # fmt: skip
def test_what_a_stage_will_load_is_looked_at_before_any_stage_starts(set_key, point, key, stage):
    set_key(point, key, "org/no-such-model")
    with pytest.raises(ConfigError, match=rf"^{key}=org/no-such-model: "):
        look(point, build_graph(point))
    look(point, [node for node in build_graph(point) if node.stage != stage])  # nobody else loads it


def test_what_is_done_is_not_looked_at_again(point):
    point.model.path = point.reward_model.path = "org/no-such-model"
    finish(point, "sft", "reward")
    look(point, build_graph(point))


def test_models_of_this_configurations_own_stages_are_not_looked_at(point):
    look(point, build_graph(point))


def test_the_shape_of_a_model_that_is_given_a_path_is_compared(point, saved):
    point.model.path, point.model.num_hidden_layers = str(saved[0]), 3
    with pytest.raises(ConfigError, match=r"^model\.path=.*it has num_hidden_layers=2, unlike model=opt-tiny"):
        look(point, build_graph(point))


def test_a_stages_directory_can_be_given_for_each_of_the_three(point, saved):
    """As outputs/stages/<stage>-<fingerprint>: its model/ is meant."""
    places = {}
    for name, model in zip(("actor", "reward"), saved, strict=True):
        places[name] = Path(point.output_root) / name
        shutil.copytree(model, places[name] / "model")
        (places[name] / "result.json").write_text(json.dumps({"fingerprint": name}))
    point.ppo.actor, point.ppo.reward, point.ppo.critic = str(places["actor"]), str(places["reward"]), str(places["reward"])
    look(point, build_graph(point))


# --- GGUF


@pytest.fixture(scope="module")
def gguf_model(make_config, tokenizer, tmp_path_factory):
    """A tiny Llama, and a directory with it as a GGUF file."""
    pytest.importorskip("gguf")
    config = make_config("model=llama-tiny")
    model, place = new_policy(config.model, config, tokenizer, config.zero, 0.0), tmp_path_factory.mktemp("gguf")
    write_gguf(model, tokenizer, place / "tiny.gguf")
    return model, place


def test_a_gguf_file_is_read_for_its_shape_its_weights_and_its_tokenizer(gguf_model, tokenizer):
    model, place = gguf_model
    options = ("model=local", f"model.path={place}", "model.gguf_file=tiny.gguf")
    config = load_config(*options, "reward_model=opt-tiny", "ppo.critic=actor")
    assert (
        config.model.family,
        config.model.num_hidden_layers,
        config.model.hidden_size,
        config.model.max_position_embeddings,
    ) == ("llama", 2, 64, 256)
    assert config.model.num_parameters == sum(weight.numel() for weight in model.parameters())
    look(config, [node for node in build_graph(config) if node.stage == "sft"])
    found = source_of(config.model, "model")
    assert (found.key, found.gguf_file) == ("model.path", "tiny.gguf")
    for zero in (config.zero, load_config("zero=3").zero):
        start(config)
        loaded = load_policy(found, config, zero, 0.0).state_dict()
        assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())
    own, text = load_tokenizer(str(place), "model.path", gguf_file="tiny.gguf"), "Human: How do I clean a kettle?"
    assert own(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (own.pad_token_id, own.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_a_gguf_file_that_is_not_there_or_is_none_is_refused(make_config, gguf_model, tmp_path):
    _, place = gguf_model
    config = make_config()
    assert "it cannot be loaded" in refused(place, config, "model.path", gguf_file="other.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    assert "it cannot be loaded" in refused(tmp_path, config, "model.path", gguf_file="bad.gguf")
    with pytest.raises(ConfigError, match=r"^model\.path="):
        load_hf_config(Source(str(tmp_path), "model.path", gguf_file="bad.gguf"))
