"""What a user can get wrong on the command line, and that the answer names the word at fault."""

import pytest
from support.command import run_rlhf

from rlhf.cli.prepare import load_config
from rlhf.config.command import read_command
from rlhf.config.errors import ConfigError


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """No test of this file runs a stage."""
    monkeypatch.setattr("rlhf.cli.run.execute", lambda tasks, console: pytest.fail("something ran"))
    monkeypatch.delenv("NOSUCH", raising=False)


# What is typed, beside two words that are right; how the error begins; and what its advice holds.
WRONG = [
    # keys that there are, or are not
    ("+ppo.kl_coef=0.1", "+ppo.kl_coef=0.1", "write ppo.kl_coef=0.1"),
    ("~unknown", "~unknown=", "--cfg job"),
    ("~ppo.kl_cof", "~ppo.kl_cof=", "did you mean ppo.kl_coef?"),
    ("~seed=5", "~seed=5", ""),
    ("seed.x=1", "seed.x=1", "did you mean seed?"),
    ("seed@x=1", "seed@x=1", "groups"),
    # options
    ("model=null", "model=null", "choose one of"),
    ("ppo=5", "ppo=5", "deepspeed-chat"),
    ("++model=opt-125m", "++model=opt-125m", "write model=opt-125m"),
    ("+model=opt-125m", "+model=opt-125m", "write model=opt-125m"),
    ("model=opt-tine", "model=opt-tine", "did you mean opt-tiny?"),
    ("zero@nope=2", "zero@nope=", "zero"),
    ("ppo=[demo,tldr]", "ppo=[demo,tldr]", "-m ppo=demo,tldr"),
    ("stage=[sft,reward]", "stage=[sft,reward]", "stages=[sft,reward]"),
    ("model=${nosuch}", "model=${nosuch}", ""),
    ("~model", "~model=", ""),
    # presets
    ("experiments=bench", "experiments=bench", "write +experiments=bench"),
    ("sweeps=kl", "sweeps=kl", "write +sweeps=kl"),
    ("+sweeps=kl", "+sweeps=kl", "python -m rlhf -m +sweeps=kl"),
    ("+experiments=nope", "experiments=nope", "choose one of bench"),
    ("+experiments=[bench,nope]", "experiments=nope: there is no such option", "choose one of bench"),
    # values
    ("seed=${nosuch}", "seed=${nosuch}", "correct the reference"),
    ("name=${oc.env:NOSUCH}", "name=${oc.env:NOSUCH}", "correct the reference"),
    ("ppo.kl_coef=" + "9" * 400, "ppo.kl_coef=999", "give a number"),
    ("seed=" + "[" * 3000 + "]" * 3000, "", ""),
    ("ppo.kl_coef={a:1}", "ppo.kl_coef={'a': 1}", "give a number"),
    ("hydra.run.dir=${nosuch}", "hydra.run.dir=${nosuch}", "correct the reference"),
    # several values without -m, or of what has one
    ("seed=1,2", "seed=1,2", "-m"),
    ("seed=range(0,3)", "seed=range(0,3)", "sweep with -m"),
    ("ppo.kl_coef=interval(0,1)", "ppo.kl_coef=interval(0,1)", "-m 'ppo.kl_coef=interval(0,1)'"),
    ("model=glob(*)", "model=glob(*)", "sweep with -m"),
    ("model=opt-tiny,gpt2-tiny", "model=opt-tiny,gpt2-tiny", "sweep with -m"),
    ("stage=sft,reward", "stage=sft,reward", "stages=[sft,reward]"),
    ("-m model=glob(nosuch*)", "model=glob(nosuch*)", "choose one of"),
    ("-m seed=range(1,1)", "seed=range(1,1)", "at least one value"),
    ("-m hydra.job.name=a,b", "hydra.job.name=a,b", "give one value"),
    ("-m dry_run=true,false", "dry_run=True,False", "give it one value"),
    ("-m launcher=auto,local", "launcher.kind=auto,local", "give it one value"),
    ("-m launcher.parallel=1,2", "launcher.parallel=1,2", "give it one value"),
    ("-m name=a,b", "name=a,b", "give it one value"),
    ("-m ppo=demo,nope", "ppo=nope", "tldr"),
    # words that are none
    ("seed", "override=seed", "write seed=VALUE"),
    ("a=b=c", "override=a=b=c", "quote"),
    ("seed=[1", "override=seed=[1", "key=value"),
    ("seed=1)", "override=seed=1)", "key=value"),
    ("name='x", "override=name='x", "quote"),
    ("ppo.=1", "override=ppo.=1", "key=value"),
    # flags
    ("--seed=1", "argument=--seed=1", "write seed=1"),
    ("-seed", "argument=-seed", "key=value"),
    ("--nosuch", "argument=--nosuch", "--hydra-help"),
    ("--multirun=3", "argument=--multirun", ""),
    ("--cfg nope", "argument=--cfg", ""),
    ("--cfg job -m", "argument=--cfg", "leave out"),
    ("--resolve", "argument=--resolve", "--cfg job --resolve"),
    ("-p ppo", "argument=--package", "--cfg job --package ppo"),
    ("-cd /nosuch", "--config-dir=/nosuch", ""),
    # Hydra's own ways of running jobs
    ("hydra/launcher=nosuch", "hydra/launcher=nosuch", ""),
    ("hydra.job.chdir=true", "hydra.job.chdir=True", "leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "start", "fix"), WRONG, ids=[row[0][:40] for row in WRONG])
def test_a_refusal_names_the_word_at_fault(cli, tmp_path, typed, start, fix):
    code, out, err = cli("sft.epochs=1", *typed.split(), "ppo.gamma=0.9")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    told = line.removeprefix("error: ")
    assert told.startswith(start) and fix in told.partition("; ")[2] and len(told) < 1500
    assert "sft.epochs" not in told and "ppo.gamma" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["", " ", "key =1", "\0=1", "seed=\x1b[31m"])
def test_a_word_of_blanks_or_control_characters_is_named(cli, word):
    code, out, err = cli("sft.epochs=1", word)
    assert (code, out) == (2, "") and err.startswith("error: override=") and "sft.epochs" not in err
    assert len(err.splitlines()) == 1 and err.rstrip("\n").isprintable()


@pytest.mark.parametrize(("typed", "start", "fix"), WRONG, ids=[row[0][:40] for row in WRONG])
def test_no_advice_is_what_was_typed(cli, typed, start, fix):
    assert f"did you mean {typed.partition('=')[0]}?" not in fix and fix != f"write {typed}"


@pytest.mark.parametrize(
    "words",
    [
        ["seed=3", "-m", "ppo.kl_coef=0.1,0.2", "dry_run=true"],
        ["-m", "seed=3", "ppo.kl_coef=0.1,0.2", "dry_run=true"],
        ["seed=3", "ppo.kl_coef=0.1,0.2", "dry_run=true", "--multirun"],
    ],
)
def test_overrides_may_stand_on_both_sides_of_a_flag(cli, words):
    code, out, err = cli(*words)
    assert (code, err) == (0, "") and "2 points" in out and "1 sft, 1 reward, 2 ppo" in out


def test_overrides_may_stand_on_both_sides_of_cfg(cli):
    code, out, err = cli("seed=3", "--cfg", "job", "ppo=tldr", "-p", "seed")
    assert (code, err) == (0, "") and out.strip() == "3"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "Groups, as group=option"),
        (["--hydra-help"], "Hydra"),
        (["--cfg", "hydra", "-p", "hydra.sweep"], "subdir: "),
        (["--cfg", "job", "--resolve", "-p", "reward_model.name"], "opt-tiny"),
    ],
)
def test_what_only_shows_is_answered_as_hydra_does(cli, tmp_path, words, shown):
    code, out, err = cli(*words)
    assert (code, err) == (0, "") and shown in out and not list(tmp_path.iterdir())


def test_hydras_info_is_shown(tmp_path):
    """In a process of its own: it sets logging up for all that follows."""
    done = run_rlhf("seed=3", "--info", "searchpath", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "hydra.searchpath in main" in done.stdout
    assert not list(tmp_path.iterdir())


def test_flags_and_overrides_are_told_apart():
    command = read_command(["seed=1", "-m", "zero=3", "--config-dir", "x", "a=b"])
    assert command.overrides == ["seed=1", "zero='3'", "a=b"] and command.flags == ["-m", "--config-dir", "x"]
    assert command.multirun and not command.shows and command.config_dir == "x"
    assert read_command(["--cfg=job"]).shows and read_command(["--mul"]).multirun


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (("seed",), "override=seed"),
        (("seed=1", "seed=1,2"), "seed=1,2"),
        (("+sweeps=kl",), r"\+sweeps=kl"),
        (("seed=" + "[" * 3000 + "]" * 3000,), ""),
        (("ppo.kl_coef=" + "9" * 400,), "ppo.kl_coef=9"),
        (("ppo.kl_cof=1",), "ppo.kl_cof=1: "),
    ],
)
def test_from_python_too(overrides, start):
    with pytest.raises(ConfigError, match=f"^{start}"):
        load_config(*overrides)
