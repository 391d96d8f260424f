"""Typed on a machine without GPUs, network and weights: looking works, and running tells all that is missing."""

import pytest
from support.command import run_here, run_rlhf

HEADLINE = "model=opt-13b", "hardware=dgx8"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*HEADLINE, "dry_run=true"), "steps by the published 76,256 rows of Dahoas/rm-static"),
        ((*HEADLINE, "launcher=slurm", "dry_run=true"), "1 sft, 1 reward, 1 ppo to run"),
        (("+experiments=opt-66b-dgx8-80gx8", "dry_run=true"), "1 sft, 1 reward, 1 ppo to run"),
        (("+experiments=deepspeed-chat-benchmark", *HEADLINE, "dry_run=true"), "1 ppo to run"),
        ((*HEADLINE, "--cfg", "job", "-p", "sft"), "learning_rate: 0.0001"),
    ],
)  # fmt: skip
def test_looking_needs_nothing(words, told, tmp_path):
    done = run_here(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert told in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_looked_at_is_said(tmp_path):
    shown = run_here(*HEADLINE, "dry_run=true", cwd=tmp_path).stdout
    assert "not looked at, since it is on the hub: facebook/opt-13b, facebook/opt-350m, Dahoas/rm-static" in shown


def test_running_tells_all_that_is_missing_at_once_with_what_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run_here(*HEADLINE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.split("=")[0].removeprefix("error: ") for line in lines] == [
        "hardware.gpus_per_node", "data.hub.name", "model.path", "reward_model.path",
    ]  # fmt: skip
    assert "hardware=cpu" not in done.stderr
    assert "launcher=slurm" in lines[0] and "dry_run=true" in lines[0]
    for line in lines[1:]:
        assert "python -m rlhf fetch" in line and "HF_HOME" in line and "HF_HUB_OFFLINE=1" in line
    assert "model.path=DIR" in lines[2] and "reward_model.path=DIR" in lines[3]


def test_versions_are_told(tmp_path):
    done = run_rlhf("--version", cwd=tmp_path)
    assert done.stdout.startswith("rlhf ") and "transformers" in done.stdout and "torch" in done.stdout


def test_a_model_of_unknown_size_is_shown_with_no_hyperparameters(tmp_path):
    done = run_here("model=./nowhere", "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: model.path=./nowhere: its size")
