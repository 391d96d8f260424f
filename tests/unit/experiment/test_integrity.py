"""The models of a finished stage are what the stage saved, or are refused."""

import json
import os
import shutil
import struct
import time

import pytest

from rlhf.config.errors import ConfigError
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.integrity import MANIFEST, SMALL, describe_models, differing_files, integrity_error, known_files
from rlhf.experiment.stage_directory import Result, StageDirectory

HEADER = json.dumps({"weight": {"dtype": "U8", "shape": [1000], "data_offsets": [0, 1000]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(range(250)) * 4


def save(place):
    """A model as a stage leaves one, as far as files go."""
    place.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (place / name).write_text(json.dumps({"name": name, "filler": "x" * 100}))
    (place / "model.safetensors").write_bytes(WEIGHTS)
    (place / "README.md").write_text("a card")
    return place


@pytest.fixture
def stage(tmp_path):
    """A finished PPO stage."""
    directory = StageDirectory(tmp_path / "stages" / "ppo-0123456789ab")
    for name in ("model", "critic", "adapter"):
        save(directory.path / name)
    (directory.path / "adapter" / "config.json").rename(directory.path / "adapter" / "adapter_config.json")
    (directory.path / "logs").mkdir()
    (directory.path / "logs" / "rank-0.log").write_text("it may grow")
    directory.finish(Result("ppo", "f" * 64, 1.0, {}))
    return directory


def flip(file, *places):
    """Change bytes of a file in place."""
    content = bytearray(file.read_bytes())
    for place in places:
        content[place] ^= 1
    file.write_bytes(content)


CHANGES = {
    "three bytes of the weights": (lambda m: flip(m / "model.safetensors", 200, 500, 900), "model.safetensors has changed"),
    "weights that are cut off": (lambda m: os.truncate(m / "model.safetensors", 500), "has 500 bytes instead of"),
    "a tokenizer that is cut off": (lambda m: os.truncate(m / "tokenizer.json", 20), "tokenizer.json has 20 bytes"),
    "an empty configuration": (lambda m: (m / "config.json").write_text(""), "config.json has 0 bytes instead of"),
    "another value": (lambda m: flip(m / "config.json", 4), "config.json has changed"),
    "a file less": (lambda m: (m / "generation_config.json").unlink(), "generation_config.json is missing"),
    "a file more": (lambda m: (m / "added_tokens.json").write_text("{}"), "added_tokens.json was not saved by the stage"),
    "no directory": (shutil.rmtree, "is missing"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", ("model", "critic"))
def test_a_model_that_was_changed_is_noticed_before_anything_starts(stage, name, what):
    change, problem = CHANGES[what]
    model = stage.path / name
    assert integrity_error(model) is None
    change(model)
    assert problem in integrity_error(model)


@pytest.mark.parametrize("what", [what for what in CHANGES if what != "no directory"])
@pytest.mark.parametrize("name", (".", "model", "critic"))
def test_a_changed_model_that_is_given_by_its_directory_is_refused(stage, name, what):
    """A result that was trained from what it was would else be taken for that of what it is."""
    change, problem = CHANGES[what]
    given = stage.path / name
    before = content_id(str(given), "ppo.critic")
    change(stage.path / ("model" if name == "." else name))
    with pytest.raises(ConfigError, match=rf"^ppo\.critic=.*{problem}.*give a copy of the model elsewhere"):
        content_id(str(given), "ppo.critic")
    copy = shutil.copytree(stage.path / ("model" if name == "." else name), stage.path.parent / "copy")
    assert content_id(str(copy), "ppo.critic") not in (before, "f" * 64)


def test_what_is_no_part_of_the_model_may_change(stage):
    (stage.model / "README.md").write_text("a card that somebody has written more into")
    (stage.model / ".notes").write_text("")
    (stage.model / "model-f16.gguf").write_bytes(b"converted")
    (stage.path / "logs" / "rank-0.log").write_text("it has grown")
    assert integrity_error(stage.model) is None


def test_a_result_may_be_copied_or_moved(stage, tmp_path):
    for copy in (shutil.copytree(stage.path, tmp_path / "copied"), stage.path.rename(tmp_path / "moved")):
        assert integrity_error(copy / "model") is None and integrity_error(copy / "critic") is None
        (tmp_path / "link").symlink_to(copy / "model")
        assert integrity_error(tmp_path / "link") is None and known_files(tmp_path / "link")
        (tmp_path / "link").unlink()
    flip(tmp_path / "copied" / "model" / "model.safetensors", 300)
    assert integrity_error(tmp_path / "copied" / "model") is not None


@pytest.mark.parametrize("text", ("", "{}", "[]", '{"files": {}}', '{"files": {}, "digest": "0"}', "cut"))
def test_a_manifest_that_was_changed_is_refused(stage, text):
    file = stage.path / MANIFEST
    file.write_text(file.read_text()[:-40] if text == "cut" else text)
    assert MANIFEST in integrity_error(stage.model)


def test_a_large_file_is_compared_when_a_stage_starts_from_it(stage):
    """Before that, within a second, only by its size, unless it was written after the stage was done."""
    file = stage.model / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(SMALL + 4096)
    stage.finish(Result("ppo", "f" * 64, 1.0, {}))
    then = file.stat()
    with file.open("r+b") as stream:
        stream.seek(SMALL // 2)
        stream.write(b"xyz")
    assert "has changed" in integrity_error(stage.model)
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))  # as where a disk goes bad
    started = time.process_time()
    assert integrity_error(stage.model) is None and time.process_time() - started < 0.05
    known = known_files(stage.model)
    assert "model.safetensors has changed" in differing_files(stage.model, known, known, known)


def test_without_a_manifest_the_form_of_the_files_is_looked_at(stage):
    (stage.path / MANIFEST).unlink()
    assert integrity_error(stage.model) is None and content_id(str(stage.path)) == "f" * 64
    os.truncate(stage.model / "tokenizer.json", 20)
    assert "tokenizer.json cannot be read" in integrity_error(stage.model)


def test_a_manifest_is_there_before_the_result(stage, monkeypatch):
    written, writer = [], "rlhf.experiment.stage_directory.write_json"
    monkeypatch.setattr(writer, lambda path, value: written.append((path.name, value)))
    stage.finish(Result("ppo", "f" * 64, 1.0, {"eval/gold": 1.0}))
    (manifest, content), (result, value) = written
    assert (manifest, result) == (MANIFEST, "result.json")
    assert value == {"stage": "ppo", "fingerprint": "f" * 64, "seconds": 1.0, "metrics": {"eval/gold": 1.0}}
    assert content == describe_models(stage.path)
    assert {name.split("/")[0] for name in content["files"]} == {"model", "critic", "adapter"}


def large_model(place, values):
    """A safetensors file of 70 MB with two tensors, of which the second is small."""
    place.mkdir()
    body = 70 * 10**6
    header = json.dumps({
        "body": {"dtype": "U8", "shape": [body], "data_offsets": [0, body]},
        "score.weight": {"dtype": "U8", "shape": [8], "data_offsets": [body, body + 8]},
    }).encode()  # fmt: skip
    with (place / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.seek(body + len(header) + 8)
        stream.write(values)
    return content_id(str(place))


def test_large_models_that_differ_in_a_head_alone_are_two(tmp_path):
    first, second, again = (large_model(tmp_path / name, values) for name, values in
                            (("a", b"12345678"), ("b", b"12345679"), ("c", b"12345678")))  # fmt: skip
    assert first != second and first == again
