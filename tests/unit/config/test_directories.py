"""Names of runs, sweeps and points."""

import pytest

from rlhf.config.compose import point_name
from rlhf.config.directories import LONGEST, find_name_problem, make_safe_name, name_sweep


@pytest.mark.parametrize("name", ["../../x", "..", "/tmp/x", "a b", "a\nb", "-x", ".x", "x" * 300, "ä" * 60, "latest"])
def test_a_name_that_leads_elsewhere_is_refused_with_one_that_does_not(name):
    said = str(find_name_problem(name))
    assert said.startswith("name=") and find_name_problem(said.rpartition("write name=")[2]) is None


@pytest.mark.parametrize("name", ["rlhf", "kl-0.1", "2024_run+b", "a=1,b=2", "größer", "x" * 100])
def test_other_names_are_taken(name):
    assert find_name_problem(name) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data.prompt_format='{prompt}?'", "data.prompt_format='{prompt}!'"),
        ("rollout.stop=[a]", "rollout.stop=(a)"),
        ("ppo.actor=./a/b", "ppo.actor=./a_b"),
        ("ppo.actor='null'", "ppo.actor=null"),
        ("name=" + "x" * 120 + "?", "name=" + "x" * 120 + "!"),
        ("name=" + "ä" * 100, "name=" + "ä" * 99 + "ö"),
    ],
)
def test_different_points_have_different_directories_that_file_systems_take(one, other):
    names = [point_name([override], []) for override in (one, other)]
    assert len(set(names)) == 2 and all(len(name.encode()) <= LONGEST for name in names)
    assert all("/" not in name for name in names)
    assert point_name([one], []) == names[0]


def test_readable_names_stay_as_they_are():
    assert make_safe_name("ppo.kl_coef=0.1,seed=1") == "ppo.kl_coef=0.1,seed=1"
    assert point_name(["zero@critic_zero='3'"], []) == "zero@critic_zero=3"


SWEEP = ("-m", "seed=1,2", "sft.max_steps=3")


@pytest.mark.parametrize(
    ("typed", "alike"),
    [
        (("-m", "sft.max_steps=3", "seed=1,2,3"), True),  # more values, another order
        ((*SWEEP, "launcher=slurm", "dry_run=true", "tracking=wandb", "output_root=/x", "sweep.trials=9"), True),
        ((*SWEEP, "hydra.verbose=true", "hydra/job_logging=none", "checkpoint.keep=1"), True),
        (("-m", "seed=1,2", "sft.max_steps=4"), False),
        (("-m", "seed=1,2"), False),
        (("-m", "ppo.kl_coef=0.1,0.2", "sft.max_steps=3"), False),
        ((*SWEEP, "model=opt-125m"), False),
        ((*SWEEP, "hardware=a100-80g"), False),
    ],
)
def test_a_sweep_without_a_name_is_called_by_what_it_is(typed, alike):
    name = name_sweep("rlhf", list(SWEEP))
    assert name.startswith("rlhf-") and (name_sweep("rlhf", list(typed)) == name) == alike


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (("-m", "+sweeps=kl"), "kl"),
        (("-m", "+sweeps=kl", "seed=1,2,3", "launcher=slurm"), "kl"),
        (("-m", "+sweeps=kl", "name=kl", "model=opt-125m"), "kl"),  # typed: then it is the user's to say
        (("-m", "seed=1,2", "name=kl"), "kl"),
    ],
)
def test_a_presets_name_and_one_that_was_typed_stay_readable(typed, name):
    assert name_sweep("kl", list(typed)) == name


def test_a_preset_with_other_settings_is_another_sweep():
    names = {name_sweep("kl", ["-m", "+sweeps=kl", model]) for model in ("model=opt-125m", "model=opt-350m")}
    assert len(names) == 2 and all(name.startswith("kl-") for name in names)
