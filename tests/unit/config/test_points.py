"""Points are composed as Hydra composes them, and what is written of them is what Hydra writes."""

import shutil
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from support.quick import mark_slow

from rlhf.config.command import command_of, read_command
from rlhf.config.compose import config_root, quote_digits
from rlhf.config.errors import ConfigError
from rlhf.config.overrides import parse_command
from rlhf.config.points import Composer

REFUSED = (HydraException, OmegaConfBaseException, ValueError)
VALUES = (
    "seed=3", "ppo.kl_coef=0.2", "name='a b'", "sft.betas=[0.8,0.9]", "ppo.actor=null", "hardware.gpus_per_node=4",
    "checkpoint={keep: 3}", "name=${model.name}", "ppo.learning_rate=${sft.learning_rate}", "rollout.stop=['a,b',c]",
    "output_root=/tmp/x", "hydra.job.name=mine", "hydra.sweep.subdir=${hydra.job.num}",
)  # fmt: skip
# Options, of the packages too, some of which follow others.
OPTIONS = (
    "model=gpt2-tiny", "reward_model=opt-125m", "hardware=v100-32g", "zero='2'", "zero@critic_zero='3'", "lora=r8",
    "lora@critic_lora=none", "precision=fp32", "ppo=tldr", "stage=sft", "launcher=slurm",
    "+experiments=opt-1.3b-a6000", "+experiments=[bench,opt-1.3b-a6000]", "+sweeps=kl",
)  # fmt: skip
ADDED = ("+ppo.new=1", "++seed=5", "++ppo.kl_coef=0.3", "+new={a: [1, 2]}")
DELETED = ("~seed", "~ppo.kl_coef", "~tracking.wandb", "~launcher")
WRONG = (
    "ppo.kl_cof=1", "model=nope", "~nope", "+ppo.kl_coef=1", "seed@x=1", "zero@nope='2'", "model=[", "model={a: 1}",
    "sft.betas.x=1", "+model=gpt2-tiny", "++model=opt-tiny", "seed=1,2",
)  # fmt: skip


@pytest.fixture(scope="module")
def composer():
    with Composer(command_of([])) as made:
        assert not made.swept
        yield made


def outcome(compose, words):
    """What is composed, as text, or that it is refused."""
    try:
        config = compose(words)
    except (*REFUSED, ConfigError):
        return "refused"
    return OmegaConf.to_yaml(config), OmegaConf.to_container(config.hydra.overrides), OmegaConf.is_struct(config)


def is_as_hydra(composer, words):
    fixed = ["hydra.mode=RUN"]
    assert outcome(composer.compose, words) == outcome(
        lambda words: composer.raw_load([*fixed, *words], RunMode.RUN), words
    )


@given(st.lists(st.sampled_from((*VALUES, *OPTIONS, *ADDED, *DELETED, *WRONG)), max_size=5, unique=True))
@settings(max_examples=6)
def test_a_point_is_composed_as_hydra_composes_it(composer, words):
    is_as_hydra(composer, words)


@pytest.mark.slow
@given(st.lists(st.sampled_from((*VALUES, *OPTIONS, *ADDED, *DELETED, *WRONG)), max_size=6, unique=True))
@settings(max_examples=60)
def test_many_points_are_composed_as_hydra_composes_them(composer, words):
    is_as_hydra(composer, words)


KINDS = [VALUES, (*OPTIONS[:-2], *VALUES), OPTIONS[-2:], ADDED, DELETED]
REFUSALS = [(word,) for word in WRONG]


@pytest.mark.parametrize("words", mark_slow([*KINDS, *REFUSALS], [*KINDS, *REFUSALS[:4]]), ids=str)
def test_each_kind_of_override_is_applied_as_hydra_applies_it(composer, words):
    is_as_hydra(composer, list(words))
    if len(words) == 1:
        assert outcome(composer.compose, list(words)) == "refused"


def test_files_are_read_once_for_a_choice_of_options(composer, monkeypatch):
    loads = []
    load = composer.raw_load
    monkeypatch.setattr(composer, "raw_load", lambda words, mode: loads.append(words) or load(words, mode))
    for seed in range(20):
        for model in ("codegen-tiny", "gptj-tiny"):
            assert composer.compose([f"model={model}", f"seed={seed}"]).seed == seed
    assert len(loads) == 2


def test_what_was_typed_is_parsed_once_for_all_points(monkeypatch):
    """Else the time of a sweep over a list grows with the square of the list's length."""
    words = ["-m", "ppo.kl_coef=0.1,0.2,0.3,0.4"]
    monkeypatch.setattr("sys.argv", ["rlhf", *words])
    parse_command.cache_clear()
    with Composer(read_command(words)) as composer:
        for number, point in enumerate(composer.points):
            composer.compose_job(point, number)
    found = parse_command.cache_info()
    assert found.misses == 1 and found.hits >= 2 * 4 - 1  # the names of the sweep, and of the point


def test_an_option_that_was_changed_is_read_again(tmp_path):
    file = tmp_path / "sft" / "mine.yaml"
    file.parent.mkdir()
    for rate in (0.1, 0.2):
        file.write_text(f"defaults: [demo, _self_]\nlearning_rate: {rate}\n")
        with Composer(read_command(["--config-dir", str(tmp_path), "sft=mine"])) as composer:
            assert composer.compose_job(composer.points[0]).config.sft.learning_rate == rate


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("ppo.kl_coef=range(0.1,0.4,0.1)", ["0.1", "0.2", "0.3"]),
        ("ppo.kl_coef=range(0,0.9,0.3)", ["0.0", "0.3", "0.6"]),  # Hydra has 0.8999999999999999 as well
        ("ppo.kl_coef=range(0.7,0.1,-0.2)", ["0.7", "0.5", "0.3"]),
        ("ppo.kl_coef=sort(range(0.1,0.4,0.1),reverse=true)", ["0.3", "0.2", "0.1"]),
        ("ppo.learning_rate=range(1e-6,4e-6,1e-6)", ["1e-06", "2e-06", "3e-06"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
    ],
)
def test_a_range_counts_in_decimals(word, values):
    """0.30000000000000004 is another number than 0.3, and would be another stage."""
    with Composer(read_command(["-m", word])) as composer:
        assert [point[-1].partition("=")[2] for point in composer.points] == values


def test_presets_of_sweeps_give_way_to_what_is_typed():
    with Composer(read_command(["-m", "+sweeps=kl", "seed=5", "lora=none,r8"])) as composer:
        points = composer.points
    assert len(points) == 8 and all("seed=5" in point and "+sweeps=kl" in point for point in points)
    assert {word for point in points for word in point if word.startswith("lora")} == {"lora=none", "lora=r8"}


def test_a_glob_stands_for_the_options_of_a_group_presets_too():
    with Composer(
        read_command(["-m", "precision=glob(*)", "+experiments=glob(opt-1.3b-*)", "zero=glob(*,exclude=*-*)"])
    ) as c:
        points = c.points
        assert {point[0] for point in points} == {f"precision={name}" for name in ("auto", "bf16", "fp16", "fp32")}
        assert {point[1] for point in points} == {f"+experiments=opt-1.3b-{name}" for name in ("a6000", "v100x16")}
        assert "zero='3'" in {point[2] for point in points}
        assert c.compose(["zero='3'"]).zero.stage == 3


def files(root):
    return {str(file.relative_to(root)): file.read_text() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.fixture
def own_state(monkeypatch):
    """Hydra's global state is as it was, afterwards."""
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", GlobalHydra.instance().hydra)


def by_hydra(words, multirun):
    """What Hydra itself writes."""
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("rlhf", create_config_search_path(str(config_root() / "conf")))
    run = hydra.multirun if multirun else hydra.run
    run(config_name="config", task_function=lambda config: None, overrides=[*words, f"hydra.mode={'MULTI' * multirun}RUN"])


@pytest.mark.parametrize(
    ("words", "multirun"),
    [
        (["seed=1", "zero=2", "+experiments=opt-1.3b-a6000", "output_root={root}", "hydra.run.dir={root}/run"], False),
        pytest.param(
            ["+sweeps=kl", "ppo.kl_coef=0.1,0.2", "output_root={root}", "hydra.sweep.dir={root}/s", "zero=0,2"],
            True,
            marks=pytest.mark.slow,
        ),
        (["seed=1,2", "hydra.sweep.dir={root}/s", "hydra.sweep.subdir=${{hydra.job.override_dirname}}"], True),
    ],
)
def test_what_is_written_is_what_hydra_writes(tmp_path, monkeypatch, own_state, words, multirun):
    monkeypatch.chdir(tmp_path)
    words = quote_digits([word.format(root=tmp_path / "out") for word in words])
    monkeypatch.setattr("sys.argv", ["rlhf", *(["-m"] if multirun else []), *words])
    with Composer(read_command([*(["-m"] if multirun else []), *words])) as composer:
        composer.save([composer.compose_job(point, number) for number, point in enumerate(composer.points)])
        ours = files(tmp_path)
    assert len(ours) >= 3
    shutil.rmtree(tmp_path / "out")
    by_hydra(words, multirun)
    theirs = files(tmp_path)
    assert ours.keys() == theirs.keys()
    for name, text in theirs.items():
        assert ours[name] == text, name


def test_composing_leaves_hydras_own_state_as_it_was(composer):
    """A user's program may use Hydra itself."""
    from rlhf import load_config

    before = HydraConfig.instance().cfg
    load_config("seed=3")
    assert HydraConfig.instance().cfg is before
    assert Path(composer.loader.config_search_path.get_path()[1].path).name == "conf"
