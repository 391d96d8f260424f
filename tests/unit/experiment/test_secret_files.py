"""A configuration that holds a secret, wherever it is written: only spec.json has the secret, for its owner alone."""

import json
import os
import stat

import pytest
from omegaconf import OmegaConf
from support.wandb_files import log_records

from rlhf.config.command import read_command
from rlhf.config.errors import ConfigError
from rlhf.config.points import Composer
from rlhf.experiment.graph import build_graph
from rlhf.experiment.record import write_record
from rlhf.experiment.spec import read_spec, write_spec
from rlhf.experiment.store import write_atomic
from rlhf.experiment.sweep import Outcome, Point
from rlhf.launch.slurm import check_options, job_parameters, write_job_spec
from rlhf.launch.worker import note_error

SECRET = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"
SETUP = f"export HF_TOKEN={SECRET}"


@pytest.fixture
def config(make_config, tmp_path):
    config = make_config("tracking=wandb", "launcher=slurm")
    config.output_root, config.launcher.setup = str(tmp_path / "outputs"), ["module load cuda", SETUP]
    return config


def holders(place):
    """The files that have the secret, with their modes."""
    files = [file for file in place.rglob("*") if file.is_file()]
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in files if SECRET.encode() in file.read_bytes()}


def test_a_point_and_a_stage_keep_it_in_the_spec_alone(config, tmp_path):
    place = tmp_path / "outputs" / "runs" / "a"
    point = Point(config, [f"launcher.setup=[{SETUP}]"], place, False, build_graph(config))
    failed = {node.fingerprint: Outcome("failed", f"the shell said: {SETUP}") for node in point.stages}
    write_record(point, failed)
    assert holders(tmp_path) == {}
    assert "HF_TOKEN=<secret>" in (place / "config.yaml").read_text()
    assert json.loads((place / "summary.json").read_text())["overrides"] == ["launcher.setup=[export HF_TOKEN=<secret>]"]
    spec = write_spec(point.stages[0], config)
    point.stages[0].directory.set_status(state="failed", reason=f"the shell said: {SETUP}")
    note_error(spec, RuntimeError(f"the shell said: {SETUP}"))
    assert holders(tmp_path) == {"spec.json": 0o600}
    assert read_spec(spec.file).config.launcher.setup == ["module load cuda", SETUP]


def test_what_slurm_is_given_reads_it_from_a_private_file(config, tmp_path):
    point = Point(config, [], tmp_path, False, build_graph(config))
    spec = write_spec(point.stages[0], config)
    write_job_spec(spec, tmp_path / "outputs" / "slurm")
    task = type("Task", (), {"config": config, "node": point.stages[0]})
    given = job_parameters(task, [], tmp_path)
    assert SECRET not in str(given)
    assert given["slurm_setup"][1] == "module load cuda"
    script = tmp_path / "script.sh"
    script.write_text("\n".join([*(line for line in given["slurm_setup"] if "module" not in line), "printenv HF_TOKEN"]))
    assert os.popen(f"bash {script}").read().strip() == SECRET
    assert set(holders(tmp_path).values()) == {0o600} and len(holders(tmp_path)) == 3


def test_an_option_of_sbatch_is_refused_without_being_told(config):
    config.launcher.additional = {"comment": "a b", "export": SETUP}
    with pytest.raises(ConfigError, match=r"launcher\.additional\.export=<secret>.*launcher\.setup") as refused:
        check_options(config.launcher)
    assert SECRET not in str(refused.value)


def test_an_error_does_not_tell_it():
    assert SECRET not in str(ConfigError("launcher.setup", [SETUP], f"no such command: {SETUP}", "give another one"))


def test_wandb_is_told_neither_the_configuration_nor_the_command_line(config, tmp_path, monkeypatch):
    import sys

    from rlhf.tracking.wandb import WandbRun

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["rlhf", f"launcher.setup=[{SETUP}]"]
    monkeypatch.setattr(sys, "argv", words)
    spec = write_spec(build_graph(config)[0], config)
    WandbRun(spec, resumed=False).finish(0)
    assert sys.argv == ["rlhf", f"launcher.setup=[{SETUP}]"] and sys.argv is words
    (file,) = spec.file.parent.glob("wandb/offline-run-*/run-*.wandb")
    assert b"HF_TOKEN=<secret>" in b"".join(log_records(file.read_bytes()))
    assert holders(tmp_path) == {"spec.json": 0o600}


def test_a_private_file_never_is_readable_by_others(tmp_path, monkeypatch):
    """Not even under a permissive umask, nor while it is written, nor where another file was before."""
    file, seen = tmp_path / "spec.json", []
    file.write_text("old")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(stat.S_IMODE(os.stat(a).st_mode)), replace(a, b)))
    before = os.umask(0)
    try:
        write_atomic(file, "x" * 100, private=True)
    finally:
        os.umask(before)
    assert seen == [0o600] and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_hydra_writes_of_a_sweep_is_masked(tmp_path):
    words = ["-m", "ppo.kl_coef=0.1,0.2", f"launcher.setup=['{SETUP}']", f"output_root={tmp_path}", "name=a"]
    with Composer(read_command(words)) as composer:
        composer.save([composer.compose_job(overrides, number) for number, overrides in enumerate(composer.points)])
    assert holders(tmp_path) == {}
    written = [file for file in tmp_path.rglob("*.yaml") if file.name != "hydra.yaml"]
    assert len(written) == 5  # multirun.yaml, and overrides and configuration of two points
    for file in written:
        assert "export HF_TOKEN=<secret>" in file.read_text(), file
    assert OmegaConf.load(written[0]) is not None
