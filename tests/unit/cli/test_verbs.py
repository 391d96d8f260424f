"""The first word of a command: a verb, or the first override of a run."""

import importlib
import sys

import pytest

from rlhf import cli


@pytest.fixture
def called(monkeypatch):
    """`called(*words)`: the exit code of a command, and the verb and words that were run."""

    def call(*words):
        ran = []
        monkeypatch.setattr(cli, "call", lambda verb, arguments: ran.append((verb, list(arguments))) or 0)
        monkeypatch.setattr(sys, "argv", ["rlhf", *words])
        return cli.main(), ran

    return call


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        ((), ("run", [])),
        (("seed=1",), ("run", ["seed=1"])),
        (("-m", "seed=1,2"), ("run", ["-m", "seed=1,2"])),
        (("+sweeps=kl", "-m"), ("run", ["+sweeps=kl", "-m"])),
        (("~ppo.kl_coef",), ("run", ["~ppo.kl_coef"])),
        (("run", "seed=1"), ("run", ["seed=1"])),
        (("status", "outputs"), ("status", ["outputs"])),
        (("bench", "bench.what=rollout"), ("bench", ["bench.what=rollout"])),
    ],
)
def test_a_first_word_without_a_sign_is_a_verb(called, words, ran):
    assert called(*words) == (0, [ran])


def test_the_words_of_a_verb_are_what_hydra_is_told(called):
    called("run", "seed=1")
    assert sys.argv == ["rlhf", "seed=1"]


def test_an_unknown_verb_is_refused_and_the_nearest_is_named(called, capsys):
    assert called("statsu") == (2, [])
    said = capsys.readouterr().err
    assert (
        said.startswith("error: verb=statsu")
        and "did you mean status?" in said
        and "run, plan, data, status, report, chat" in said
    )


@pytest.mark.parametrize("verb", ["plan", "data", "evaluate", "evaluate-reward", "chat"])
def test_verbs_answer_help_unknown_flags_and_ctrl_c_alike(verb, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()  # without a model
    module = importlib.import_module(cli.VERBS[verb])
    assert module.main(["--help"]) == 0 and f"python -m rlhf {verb}" in capsys.readouterr().out
    assert module.main(["outputs", "--bogus"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"error: argument=--bogus: there is no such flag; `python -m rlhf {verb} --help` lists the flags"
    )

    def interrupt(*_):
        raise KeyboardInterrupt

    for name in ("read_overrides", "read_arguments"):
        monkeypatch.setattr(module, name, interrupt, raising=False)
    assert module.main(["outputs"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
