import json
import os
import shutil

import pytest

from rlhf.config.derive import shard_layout
from rlhf.config.errors import ConfigError
from rlhf.experiment.checkpoints import (
    MANIFEST,
    Manifest,
    check_layout,
    checkpoint_dirs,
    checkpoint_name,
    file_digest,
    integrity_error,
    partial_dir,
    publish,
    read_manifest,
    remove_all,
)


def write(directory, name, keep=2, layout=None, files=("rank-0.safetensors",)):
    """A checkpoint of a few bytes."""
    place = partial_dir(directory, name)
    place.mkdir(parents=True)
    for number, file in enumerate(files):
        (place / file).write_bytes(f"{name} {number}".encode())
    found = {file: file_digest(place / file) for file in files}
    publish(directory, name, Manifest(int(name.split("-")[1]), layout or {}, {"row": 3}, found), keep)
    return directory / "checkpoints" / name


def names(directory):
    return [place.name for place in checkpoint_dirs(directory)]


def test_names_tell_step_and_phase():
    assert checkpoint_name(12, None) == "step-000012" and checkpoint_name(12, "rollout") == "step-000012-rollout"


def test_places_are_the_newest_first(tmp_path):
    assert checkpoint_dirs(tmp_path) == []
    order = [(0, "rollout"), (1, None), (1, "rollout"), (2, None), (9, None), (10, None), (999_999, None)]
    order += [(999_999, "rollout"), (1_000_000, None), (1_000_000, "rollout"), (10_000_000, None)]
    expected = [checkpoint_name(*item) for item in order]
    for name in sorted(expected, key=lambda name: hash(name) % 7):
        write(tmp_path, name, keep=99)
    assert names(tmp_path) == expected[::-1]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    order = ["step-000000-rollout", "step-000001", "step-000001-rollout", "step-000002", "step-999999", "step-1000000"]
    for number, name in enumerate(order):
        place = write(tmp_path, name, keep)
        assert place.is_dir()
        assert names(tmp_path) == order[max(0, number + 1 - keep) : number + 1][::-1]


def test_what_is_not_whole_is_no_checkpoint(tmp_path):
    write(tmp_path, "step-000001")
    unfinished = partial_dir(tmp_path, "step-000002")
    unfinished.mkdir()
    (unfinished / MANIFEST).write_text("{}")
    half_removed = tmp_path / "checkpoints" / "step-000003"
    half_removed.mkdir()
    (half_removed / "rank-0.safetensors").write_bytes(b"")
    assert names(tmp_path) == ["step-000001"]


def test_a_checkpoint_takes_the_place_of_an_older_one_of_its_name(tmp_path):
    place = write(tmp_path, "step-000001", files=("rank-0.safetensors", "rank-1.safetensors"))
    write(tmp_path, "step-000001")
    assert sorted(file.name for file in place.iterdir()) == [MANIFEST, "rank-0.safetensors"]
    assert integrity_error(place, ["rank-0.safetensors"], read_manifest(place)) is None


def test_whatever_is_half_removed_is_replaced(tmp_path):
    place = write(tmp_path, "step-000001", files=("rank-0.safetensors", "rank-1.safetensors"))
    (place / MANIFEST).unlink()
    write(tmp_path, "step-000001")
    assert sorted(file.name for file in place.iterdir()) == [MANIFEST, "rank-0.safetensors"]


def test_a_checkpoint_has_its_manifest_when_it_appears(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def noted(source, target):
        if str(target).endswith("step-000001"):
            seen.append(sorted(file.name for file in os.scandir(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    write(tmp_path, "step-000001")
    assert seen == [[MANIFEST, "rank-0.safetensors"]]


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    numbers = {"final": {"eval/loss": 0.1 + 0.2, "worst": float("inf")}, "before": [{"text": "é \n"}], "none": None}
    place = partial_dir(tmp_path, "step-000004")
    place.mkdir(parents=True)
    manifest = Manifest(4, {"hardware.nodes": 1}, numbers, {"rank-0.safetensors": [3, "0" * 64]})
    publish(tmp_path, "step-000004", manifest, keep=1)
    assert read_manifest(tmp_path / "checkpoints" / "step-000004") == manifest


def test_numbers_that_are_none_do_not_spoil_a_manifest(tmp_path):
    place = partial_dir(tmp_path, "step-000001")
    place.mkdir(parents=True)
    publish(tmp_path, "step-000001", Manifest(1, {}, {"policy/loss": float("nan")}, {}), keep=1)
    assert str(read_manifest(tmp_path / "checkpoints" / "step-000001").numbers) == "{'policy/loss': nan}"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"digest": "0"}', '"step"', "\x00" * 50],
)
def test_a_manifest_that_is_none_is_damaged(tmp_path, text):
    place = write(tmp_path, "step-000001")
    (place / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=rf"^{MANIFEST} cannot be read$"):
        read_manifest(place)


def test_a_manifest_of_other_bytes_is_damaged(tmp_path):
    place = write(tmp_path, "step-000001")
    (place / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="cannot be read"):
        read_manifest(place)


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", 2), ("numbers", {"row": 4}), ("layout", {"zero.stage": 3}), ("digest", "0" * 64), ("files", {})],
)
def test_a_manifest_that_was_edited_is_damaged(tmp_path, key, value):
    place = write(tmp_path, "step-000001")
    content = json.loads((place / MANIFEST).read_text())
    assert content[key] != value
    (place / MANIFEST).write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError, match=rf"^{MANIFEST} has changed$"):
        read_manifest(place)


def test_a_manifest_that_is_only_written_otherwise_is_sound(tmp_path):
    place = write(tmp_path, "step-000001")
    content = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps(dict(reversed(content.items()))))
    assert read_manifest(place).step == 1


FILES = ("rank-0.safetensors", "rank-1.safetensors")


def test_a_sound_checkpoint_has_no_damage(tmp_path):
    place = write(tmp_path, "step-000001", files=FILES)
    assert integrity_error(place, list(FILES), read_manifest(place)) is None


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda file: file.unlink(), "rank-1.safetensors is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:5]), "rank-1.safetensors has 5 bytes instead of 13"),
        (lambda file: file.write_bytes(b""), "rank-1.safetensors has 0 bytes instead of 13"),
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "rank-1.safetensors has 14 bytes instead of 13"),
        (lambda file: file.write_bytes(b"x" * 13), "rank-1.safetensors has changed"),
        (lambda file: (file.unlink(), file.mkdir()), "rank-1.safetensors is missing"),
    ],
    ids=["gone", "cut off", "empty", "longer", "other bytes", "a directory"],
)
def test_damage_is_named(tmp_path, harm, problem):
    place = write(tmp_path, "step-000001", files=FILES)
    manifest = read_manifest(place)
    harm(place / FILES[1])
    assert integrity_error(place, list(FILES), manifest) == problem
    assert integrity_error(place, [FILES[0]], manifest) is None


def test_all_checkpoints_can_be_removed(tmp_path):
    remove_all(tmp_path)
    write(tmp_path, "step-000001")
    partial_dir(tmp_path, "step-000002").mkdir()
    remove_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Other devices.


@pytest.mark.parametrize(
    ("stage", "change", "key"),
    [
        ("sft", "hardware.gpus_per_node=2", "hardware.gpus_per_node"),
        ("ppo", "hardware.nodes=2", "hardware.nodes"),
        ("sft", "zero='3'", "zero.stage"),
        ("sft", "zero.reduce_bucket_size=7", "zero.reduce_bucket_size"),
        ("reward", "zero@reward_zero='3'", "reward_zero.stage"),
        ("ppo", "zero@critic_zero='1'", "critic_zero.stage"),
    ],
)
def test_other_devices_are_refused(make_config, tmp_path, stage, change, key):
    write(tmp_path, "step-000001", layout=shard_layout(make_config(), stage))
    check_layout(tmp_path, make_config(), stage)
    with pytest.raises(ConfigError) as refused:
        check_layout(tmp_path, make_config(change), stage)
    text = str(refused.value)
    old, new = (shard_layout(make_config(*changes), stage)[key] for changes in ((), (change,)))
    assert text.startswith(f"{key}={new}: {tmp_path / 'checkpoints' / 'step-000001'} was saved with {old}")
    assert f"resume with {key}={old}" in text and "checkpoint.resume=false" in text


@pytest.mark.parametrize(("stage", "change"), [("sft", "zero@critic_zero='3'"), ("ppo", "zero@reference_zero='3'")])
def test_the_sharding_of_what_the_stage_does_not_train_is_free(make_config, tmp_path, stage, change):
    write(tmp_path, "step-000001", layout=shard_layout(make_config(), stage))
    check_layout(tmp_path, make_config(change), stage)


def test_where_nothing_was_saved_any_devices_do(make_config, tmp_path):
    check_layout(tmp_path, make_config("hardware.gpus_per_node=2"), "sft")


def test_the_layout_is_that_of_the_newest_manifest_that_can_be_read(make_config, tmp_path):
    old, new = make_config(), make_config("zero='3'")
    write(tmp_path, "step-000001", layout=shard_layout(old, "sft"))
    newest = write(tmp_path, "step-000002", layout=shard_layout(new, "sft"))
    check_layout(tmp_path, new, "sft")
    with pytest.raises(ConfigError, match=r"zero\.stage"):
        check_layout(tmp_path, old, "sft")
    (newest / MANIFEST).write_text("damaged")
    check_layout(tmp_path, old, "sft")
    shutil.rmtree(newest)
    check_layout(tmp_path, old, "sft")
