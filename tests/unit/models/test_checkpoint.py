"""Weights read one at a time are those that were saved, wherever and however they lie."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import save_models

from rlhf.config.errors import ConfigError
from rlhf.models.checkpoint import Checkpoint, local_files, safetensors_names
from rlhf.models.load import load_policy, new_policy
from rlhf.models.source import Source
from rlhf.runtime.distributed import start

NAME = "model.decoder.layers.1.fc1.weight"


@pytest.fixture(scope="module")
def saved(make_config, tokenizer, tmp_path_factory):
    """A policy and a reward model on disk."""
    return tuple(map(Path, save_models(make_config(), tokenizer, tmp_path_factory.mktemp("models"))))


@pytest.fixture(scope="module")
def weights(saved):
    """The policy's weights by name."""
    return load_file(saved[0] / "model.safetensors")


@pytest.fixture
def place(saved, tmp_path):
    """The policy's directory without weights."""
    return Path(shutil.copytree(saved[0], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))


def checkpoint(place):
    return Checkpoint(Source(str(place), "ppo.actor"))


def everything(found):
    """All that a checkpoint holds, each value read on its own."""
    shapes = {name: found.open(found.files[name]) for name in found.names}
    shapes = {name: file.get_tensor(name) if hasattr(file, "get_tensor") else file[name] for name, file in shapes.items()}
    return {name: found.read(name, torch.empty_like(shapes[name], device="meta")) for name in found.names}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def in_parts(weights):
    """Two halves of the weights."""
    names = sorted(weights)
    return [{name: weights[name] for name in part} for part in (names[::2], names[1::2])]


def write_index(place, stem, files):
    """The index of files that hold these weights."""
    placed = {name: file for file, part in files.items() for name in part}
    (place / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def write(place, weights, layout):
    """The weights in one of the four ways in which models are stored."""
    if layout == "safetensors":
        save_file(weights, place / "model.safetensors", {"format": "pt"})
    elif layout == "bin":
        torch.save(weights, place / "pytorch_model.bin")
    elif layout == "sharded safetensors":
        files = {f"model-{number}-of-2.safetensors": part for number, part in enumerate(in_parts(weights), 1)}
        for file, part in files.items():
            save_file(part, place / file, {"format": "pt"})
        write_index(place, "model.safetensors", files)
    else:
        files = {f"pytorch_model-{number}-of-2.bin": part for number, part in enumerate(in_parts(weights), 1)}
        for file, part in files.items():
            torch.save(part, place / file)
        write_index(place, "pytorch_model.bin", files)
    return place


LAYOUTS = pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded safetensors", "sharded bin"])


@LAYOUTS
def test_every_stored_value_is_read_back(make_config, place, weights, layout):
    start(make_config())
    found = checkpoint(write(place, weights, layout))
    assert found.names == set(weights)
    assert same(everything(found), weights)
    expected = set(weights) if "safetensors" in layout else None
    assert safetensors_names(place) == expected


@LAYOUTS
def test_a_sharded_model_has_the_weights_of_the_files(make_config, place, weights, layout):
    import deepspeed

    config = make_config("zero=3")
    start(config)
    model = load_policy(Source(str(write(place, weights, layout)), "ppo.actor"), config, config.zero, 0.0)
    for name, weight in model.named_parameters():
        with deepspeed.zero.GatheredParameters([weight]):
            assert torch.equal(weight, weights[name]), name


def test_safetensors_come_before_pickles(make_config, place, weights):
    start(make_config())
    write(place, {name: torch.zeros_like(weight) for name, weight in weights.items()}, "bin")
    assert same(everything(checkpoint(write(place, weights, "safetensors"))), weights)


def test_a_value_is_a_copy_in_the_asked_format(make_config, place, weights):
    """A copy of its own, which may be written to: not the mapped file."""
    start(make_config())
    found = checkpoint(write(place, weights, "safetensors"))
    read = found.read(NAME, torch.empty(weights[NAME].shape, dtype=torch.bfloat16, device="meta"))
    assert read.dtype == torch.bfloat16 and torch.equal(read, weights[NAME].bfloat16())
    whole = found.read(NAME, torch.empty_like(weights[NAME], device="meta"))
    whole.zero_()
    assert torch.equal(found.read(NAME, torch.empty_like(whole, device="meta")), weights[NAME])


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        ("model.decoder.fc1.weight", "model.decoder.fc1.weight", True),
        ("decoder.fc1.weight", "model.decoder.fc1.weight", True),  # saved as a body, read into a model with a head
        ("model.decoder.fc1.weight", "decoder.fc1.weight", True),  # and the other way round
        ("embed_out.weight", "lm_head.weight", True),  # GPT-NeoX, as it was written until transformers renamed it
        ("lm_head.weight", "lm_head.weight", True),
        ("score.weight", "score.weight", True),
        ("other.decoder.fc1.weight", "model.decoder.fc1.weight", False),
        ("decoder.fc1.weight", "models.decoder.fc1.weight", False),
        ("embed_out.weight", "score.weight", False),
    ],
)
def test_names_are_found_with_and_without_the_prefix_of_the_body(place, stored, asked, found):
    files = checkpoint(write(place, {stored: torch.ones(2)}, "safetensors"))
    assert files.find(asked, "model") == (stored if found else None)


def test_an_exact_name_comes_before_one_without_its_prefix(place):
    both = {"model.weight": torch.ones(2), "weight": torch.zeros(2)}
    files = checkpoint(write(place, both, "safetensors"))
    assert (files.find("model.weight", "model"), files.find("weight", "model")) == ("model.weight", "weight")


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", "transformer"), ("gpt-neox", "gpt_neox"), ("llama", "model")])
def test_a_body_that_was_saved_alone_is_a_language_model_without_head(make_config, tokenizer, tmp_path, family, prefix):
    config = make_config(f"model={family}-tiny", "zero=3")
    start(config)
    policy = new_policy(config.model, config, tokenizer, make_config().zero, 0.0)
    getattr(policy, prefix).save_pretrained(tmp_path)
    found = checkpoint(tmp_path)
    for name, weight in policy.named_parameters():
        stored = found.find(name, policy.base_model_prefix)
        if name.startswith(("lm_head", "embed_out")):
            assert stored is None
        else:
            assert torch.equal(found.read(stored, weight), weight)


def test_a_weight_of_another_shape_is_one_clear_line(make_config, place, weights):
    start(make_config())
    found = checkpoint(write(place, weights, "safetensors"))
    with pytest.raises(ConfigError, match=rf"^ppo\.actor=.*: {NAME} is \(256, 64\), its configuration says \(3, 4\); "):
        found.read(NAME, torch.empty(3, 4, device="meta"))


def test_a_directory_without_weights_is_one_clear_line(place):
    with pytest.raises(ConfigError, match=rf"^ppo\.actor={place}: there are no weights; give one with model.safetensors"):
        checkpoint(place)


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_nothing_is_unpickled_but_tensors(make_config, place, tmp_path, weights):
    write(place, weights | {"evil": Evil(tmp_path / "owned")}, "bin")
    config = make_config("zero=3")
    start(config)
    with pytest.raises(ConfigError, match=r"^ppo\.actor=.*: it cannot be loaded") as error:
        load_policy(Source(str(place), "ppo.actor"), config, config.zero, 0.0)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


def test_pickles_of_the_old_format_are_read_too(make_config, place, weights):
    start(make_config())
    torch.save(weights, place / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(everything(checkpoint(place)), weights)


@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_damaged_weights_are_one_clear_line_of_a_sharded_model_too(make_config, place, weights, layout):
    config = make_config("zero=3")
    start(config)
    write(place, weights, layout)
    for file in [*place.glob("*.safetensors"), *place.glob("*.bin")]:
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"^ppo\.actor=.*: it cannot be loaded") as error:
        load_policy(Source(str(place), "ppo.actor"), config, config.zero, 0.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded bin"])
def test_a_file_that_the_index_names_but_is_not_there_is_one_clear_line(make_config, place, weights, layout):
    config = make_config("zero=3")
    start(config)
    write(place, weights, layout)
    next(file for file in place.iterdir() if "-2-of-2" in file.name).unlink()
    with pytest.raises(ConfigError, match=r"^ppo\.actor=.*: it cannot be loaded"):
        load_policy(Source(str(place), "ppo.actor"), config, config.zero, 0.0)


def test_a_directory_is_where_it_is(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parent))
    assert local_files(Source(str(saved[0]), "ppo.actor")) == saved[0]
    assert local_files(Source("~/actor", "ppo.actor")) == saved[0]


@pytest.fixture
def cached(place, weights, tmp_path, monkeypatch):
    """A hub id whose model was downloaded before."""
    files = tmp_path / "hub" / "models--org--model"
    (files / "refs").mkdir(parents=True)
    (files / "refs" / "main").write_text("0" * 40)
    shutil.copytree(write(place, weights, "safetensors"), files / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://no-such-host.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Source("org/model", "ppo.actor"), files / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_model_in_the_cache_is_loaded_without_the_hub(make_config, cached, weights, stage):
    """As on a machine without network, with HF_HUB_OFFLINE=1."""
    config = make_config(f"zero='{stage}'")
    start(config)
    model = load_policy(cached[0], config, config.zero, 0.0)
    assert {name for name, _ in model.named_parameters()} == set(weights)


@pytest.mark.parametrize("offline", [True, False])
def test_the_files_of_a_model_in_the_cache_are_found_while_the_hub_is_away(cached, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    assert local_files(cached[0]) == cached[1]
