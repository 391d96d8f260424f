"""A stage reads every byte of the models that it starts from, and compares them with what the stages before noted."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rlhf.config.errors import ConfigError
from rlhf.experiment import integrity
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.experiment.stage_directory import Result, StageDirectory
from rlhf.launch.worker import run_rank
from rlhf.stages.inputs import verify_inputs

SMALL = ("ppo.max_steps=1", "ppo.rollout_batch_size=4", "ppo.batch_size=4", "rollout.max_new_tokens=4", "stage=ppo")


def finished(model, directory):
    """A stage that is done and has left a copy of this model."""
    stage = StageDirectory(directory)
    shutil.copytree(model, stage.model)
    stage.finish(Result("sft", directory.name * 2, 1.0, {}))
    return stage


@pytest.fixture
def spec(make_config, models, tmp_path, monkeypatch):
    """PPO of two finished stages, of whose models no file counts as small."""
    monkeypatch.setattr(integrity, "SMALL", 0)
    actor, reward = (finished(model, tmp_path / Path(model).name) for model in models)
    config = make_config(*SMALL, f"ppo.actor={actor.path}", f"ppo.reward={reward.model}")
    config.output_root = str(tmp_path / "outputs")
    (node,) = build_graph(config)
    return write_spec(node, config)


def rot(file):
    """Turn three bits, as a disk does: neither the size nor the time of modification changes."""
    before, content = file.stat(), bytearray(file.read_bytes())
    for place in (len(content) // 3, len(content) // 2, len(content) - 9):
        content[place] ^= 16
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ("actor", "reward"))
def test_a_stage_refuses_a_model_of_which_three_bits_have_changed(spec, name):
    model = Path(spec.inputs[name])
    rot(model / "model.safetensors")
    assert integrity.integrity_error(model) is None  # nobody would know
    with pytest.raises(
        ConfigError, match=rf"^ppo\.{name}={model}: .*model.safetensors has changed since the stage was done"
    ):
        run_rank(spec)
    assert not (Path(spec.directory) / "metrics.jsonl").exists() and not (Path(spec.directory) / "result.json").exists()


def test_a_model_without_checksums_is_used_and_said_to_have_none(spec, capsys):
    actor, reward = (Path(spec.inputs[name]) for name in ("actor", "reward"))
    (actor.parent / integrity.MANIFEST).unlink()
    verify_inputs(spec)
    assert capsys.readouterr().out == f"{actor} has no checksums: only the form of its files was looked at\n"
    (reward.parent / integrity.MANIFEST).unlink()
    (reward.parent / "result.json").unlink()  # a model that is no stage's
    verify_inputs(spec)
    assert str(reward) not in capsys.readouterr().out


@pytest.mark.parametrize("stage", ("sft", "reward"))
def test_the_first_stages_look_at_their_models_too(make_config, spec, tmp_path, stage):
    """`model.path` may be a finished stage's."""
    group, name = ("model", "actor") if stage == "sft" else ("reward_model", "reward")
    config = make_config(f"stage={stage}", f"{group}.path={spec.inputs[name]}")
    config.output_root = str(tmp_path / "outputs")
    (node,) = build_graph(config)
    first = write_spec(node, config)
    verify_inputs(first)
    rot(Path(spec.inputs[name]) / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"^{group}\.path=.*has changed since the stage was done"):
        verify_inputs(first)


def test_each_model_of_a_stage_has_its_checksums(make_config, spec):
    """A PPO stage as it runs: the manifest names every file of its models, with the size that it has."""
    run_rank(spec)
    directory = Path(spec.directory)
    files = json.loads((directory / integrity.MANIFEST).read_text())["files"]
    found = [file for name in ("model", "critic") for file in (directory / name).iterdir() if file.suffix != ".md"]
    assert {str(file.relative_to(directory)): file.stat().st_size for file in found} == {n: e[0] for n, e in files.items()}
    assert json.loads((directory / "result.json").read_text()).keys() == {"stage", "fingerprint", "seconds", "metrics"}
