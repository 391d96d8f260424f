"""`python -m rlhf fetch` lists and downloads what a run reads; without network the run then finds it."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from support.hub import serve_hub

from rlhf.cli import main
from rlhf.cli.fetch import Download, choose_files, compose_all, find_downloads
from rlhf.config.hub import forget_problems


@pytest.fixture(autouse=True)
def ask_anew():
    forget_problems()
    yield
    forget_problems()


def fetch(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["rlhf", "fetch", *words])
    return main()


def names(*words):
    return {(download.kind, download.name, download.key) for download in find_downloads(compose_all(list(words)))}


def test_the_headline_command_needs_two_models_and_a_data_set():
    assert names("model=opt-13b", "hardware=dgx8") == {
        ("model", "facebook/opt-13b", "model.path"),
        ("model", "facebook/opt-350m", "reward_model.path"),
        ("dataset", "Dahoas/rm-static", "data.hub.name"),
    }
    assert names() == set()


def test_what_all_points_need_is_listed_once():
    found = names("-m", "model=opt-1.3b,opt-6.7b", "seed=1,2")
    assert sorted(name for _, name, _ in found) == [
        "Dahoas/rm-static", "facebook/opt-1.3b", "facebook/opt-350m", "facebook/opt-6.7b",
    ]  # fmt: skip


def test_models_that_are_given_by_hub_id_are_among_them():
    found = names("stage=ppo", "ppo.actor=org/actor", "ppo.reward=org/reward", "ppo.critic=reward", "data=demo")
    assert found == {("model", "org/actor", "ppo.actor"), ("model", "org/reward", "ppo.reward")}
    texts = names("ppo.ptx_coef=1", "ppo.ptx.source=hub", "ppo.ptx.hub=org/texts")
    assert ("dataset", "org/texts", "ppo.ptx.hub") in texts


def test_weights_are_read_in_one_format():
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "modeling.py"]
    assert "pytorch_model*.bin*" not in choose_files(Download("model", "org/one", "model.path"), both)
    assert "pytorch_model*.bin*" in choose_files(Download("model", "org/one", "model.path"), ["pytorch_model.bin"])
    assert "*.py" in choose_files(Download("model", "org/one", "model.path", code=True), both)


def test_a_list_needs_no_network(monkeypatch, capsys):
    assert fetch(monkeypatch, "--list", "model=opt-13b", "hardware=dgx8") == 0
    shown = capsys.readouterr().out
    assert "about 23.94" in shown and "Dahoas/rm-static" in shown and "HF_HUB" not in shown


def test_what_is_out_of_reach_is_told_at_once(monkeypatch, capsys):
    assert fetch(monkeypatch, "model=opt-13b", "hardware=dgx8") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "error: model.path", "error: reward_model.path", "error: data.hub.name",
    ]  # fmt: skip


def test_words_that_are_wrong_are_told_as_of_a_run(monkeypatch, capsys):
    assert fetch(monkeypatch, "model=opt-13bb") == 2
    assert "did you mean opt-13b?" in capsys.readouterr().err


def test_data_is_loaded_as_a_stage_loads_it(monkeypatch, tmp_path, capsys):
    """The splits that are read, so that the library's own cache has them."""
    asked = []
    for room in ("cli.fetch", "data.hub"):
        monkeypatch.setattr(f"rlhf.{room}.find_hub_problem", lambda *_: None)
    monkeypatch.setattr("rlhf.cli.fetch.measure", lambda _: (73_000_000, True))
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: asked.append((*given, options)))
    assert fetch(monkeypatch, "data=rm-static") == 0
    assert asked == [("Dahoas/rm-static", None, {"split": split, "revision": None}) for split in ("train", "test")]
    assert "HF_HUB_OFFLINE=1" in capsys.readouterr().out


LOOK = """
from rlhf.cli.prepare import check_sources, load_config
from rlhf.experiment.graph import build_graph
config = load_config("stage=sft", "model=org/tiny", "data=demo")
check_sources(config, build_graph(config)[0])
print(config.model.hidden_size, config.sft.learning_rate)
"""


def test_a_model_that_was_fetched_is_found_without_network(models, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    words = "stage=sft", "model=org/tiny", "data=demo"
    with serve_hub({"org/tiny": Path(models[0])}) as address:
        done = subprocess.run(
            [sys.executable, "-m", "rlhf", "fetch", *words], env=environment | {"HF_ENDPOINT": address},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "✓ org/tiny" in done.stdout and f"HF_HOME={tmp_path}" in done.stdout
    found = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["64", "0.006"]
