"""Bad input, from the command line to the one line that a user reads."""

import copy
import os
import re
import sys
from functools import cache

import hydra
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from rlhf.cli.prepare import load_config
from rlhf.cli.run import Invalid, compose_points
from rlhf.config.command import read_command
from rlhf.config.compose import config_root, quote_digits, register, to_config
from rlhf.config.errors import ConfigError
from rlhf.config.hydra_errors import RENAMED, current_name
from rlhf.config.keys import KEYS, types_of
from rlhf.config.points import Composer, compose_config
from rlhf.config.schema import Config


@pytest.fixture
def run(monkeypatch, tmp_path):
    """What `python -m rlhf <arguments>` composes before it runs anything."""

    def call(*arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["rlhf", *arguments, f"output_root={tmp_path}"])
        with Composer(read_command(sys.argv[1:])) as composer:
            return [point.config for point in compose_points(composer)[0]]

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    yield call
    assert "HYDRA_FULL_ERROR" not in os.environ  # set while Hydra runs, and taken back
    GlobalHydra.instance().clear()


@pytest.fixture
def default():
    """The default as Hydra composes it, before it is typed; may be changed."""
    register()
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        return copy.deepcopy(composed_default())


@cache
def composed_default():
    config = hydra.compose("config")
    OmegaConf.set_struct(config, False)
    return config


def refused(run, *arguments):
    with pytest.raises(ConfigError) as error:
        run(*arguments)
    return str(error.value)


def is_one_line(message, key, value, fix):
    assert message.startswith(f"{key}={value}: ")
    assert "\n" not in message
    assert fix in message.split("; ", 1)[1]


@pytest.mark.parametrize(
    ("argument", "key", "value", "fix"),
    [
        # a misspelled key, group or option
        ("ppo.kl_cof=1", "ppo.kl_cof", "1", "did you mean ppo.kl_coef?"),
        ("modle=opt-13b", "modle", "opt-13b", "did you mean model?"),
        ("reward_model=opt-13bb", "reward_model", "opt-13bb", "did you mean opt-13b?"),
        ("zero=4", "zero", "4", "3-offload"),
        ("zero@critic_zero=4", "zero@critic_zero", "4", "3-offload"),
        ("zero=same", "zero.stage", "${zero.stage}", "correct the reference"),  # as which?
        # keys that Hydra alone would accept
        ("+ppo.kl_cof=0.1", "ppo.kl_cof", "0.1", "did you mean ppo.kl_coef?"),
        ("+experimnt=x", "experimnt", "x", "did you mean experiments?"),
        # values of the wrong type, no list, out of range
        ("sft.epochs=two", "sft.epochs", "two", "give a number"),
        ("sft.betas=0.9", "sft.betas", "0.9", ""),
        ("stages={a:1}", "stages", "{a:1}", ""),
        ("ppo.gamma=1.5", "ppo.gamma", "1.5", "at most 1"),
        # a key taken away, several values without -m, what Hydra cannot parse
        ("~seed", "seed", "???", "seed=..."),
        ("seed=1,2", "seed", "1,2", "-m"),
        ("seed=[1", "override", "seed=[1", "key=value"),
    ],
)
def test_bad_input_is_one_line_that_names_key_value_and_fix(run, argument, key, value, fix):
    is_one_line(refused(run, argument), key, value, fix)


@pytest.mark.parametrize(
    ("key", "value", "shown", "fix"),
    [
        ("sft.max_steps", 1.5, "1.5", "give a whole number"),
        ("sft.epochs", None, "None", ""),
        ("seed", True, "True", "give a whole number"),
        ("ppo.gamma", "high", "high", "give a number"),
        ("model.do_layer_norm_before", "maybe", "maybe", ""),
        ("tracking.wandb", True, "True", ""),
        ("hardware.peak_tflops", 5, "5", ""),
        ("name", ["a"], "['a']", ""),
        ("sft.betas", None, "None", ""),
        ("model.name", "${nothing}", "${nothing}", ""),
        ("ppo.kl_coef", "???", "???", "ppo.kl_coef=..."),
        ("ppo.zzz", 1, "1", "ppo"),
        ("zzz", 1, "1", "--cfg job"),
    ],
)
def test_a_value_that_the_schema_does_not_take_is_one_line(default, key, value, shown, fix):
    OmegaConf.update(default, key, value, merge=False, force_add=True)
    with pytest.raises(ConfigError) as error:
        to_config(default)
    is_one_line(str(error.value), key, shown, fix)


def test_a_bad_item_of_a_list_is_named_by_its_place(default):
    OmegaConf.update(default, "sft.betas", [0.9, "b"])
    with pytest.raises(ConfigError, match=r"^sft\.betas\[1\]=.*; give a number$"):
        to_config(default)


def test_a_group_set_to_nothing_is_no_traceback(run):
    assert "ppo=null" in refused(run, "ppo=null")


def test_the_bad_one_of_several_overrides_is_named(run):
    assert refused(run, "seed=3", "ppo.kl_cof=1", "model=opt-125m").startswith("ppo.kl_cof=1: ")


def test_a_bad_point_of_a_sweep_stops_all_of_them(run):
    with pytest.raises(Invalid) as caught:
        run("-m", "ppo.gamma=0.9,1.5,-1", "sft.epochs=1,0")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["ppo.gamma=0.9,sft.epochs=0", "sft.epochs=0.0"],
        ["ppo.gamma=1.5,sft.epochs=1", "ppo.gamma=1.5"],
        ["ppo.gamma=1.5,sft.epochs=0", "sft.epochs=0.0"],
        ["ppo.gamma=1.5,sft.epochs=0", "ppo.gamma=1.5"],
        ["ppo.gamma=-1,sft.epochs=1", "ppo.gamma=-1.0"],
        ["ppo.gamma=-1,sft.epochs=0", "sft.epochs=0.0"],
        ["ppo.gamma=-1,sft.epochs=0", "ppo.gamma=-1.0"],
    ]


def test_all_points_of_a_sweep_are_handed_in_and_zero_takes_numbers(run):
    assert [(p.zero.stage, p.seed) for p in run("-m", "zero=0,3", "seed=2")] == [(0, 2), (3, 2)]
    assert [p.critic_zero.stage for p in run("-m", "zero@critic_zero=0,3", "zero=2")] == [0, 3]


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("zero=3", "zero='3'"),
        ("zero=0,1", "zero='0','1'"),
        ("+zero=3", "+zero='3'"),
        ("zero@critic_zero=3", "zero@critic_zero='3'"),
        ("zero@reference_zero=0,1", "zero@reference_zero='0','1'"),
        ("zero@critic_zero=same", "zero@critic_zero=same"),
        ("zero='3'", "zero='3'"),
        ("zero=3-offload", "zero=3-offload"),
        ("zero=0,3-offload", "zero='0',3-offload"),
        ("zero.stage=3", "zero.stage=3"),
        ("seed=3", "seed=3"),
        ("-m", "-m"),
    ],
)
def test_numbers_that_name_a_zero_option_are_quoted(argument, meant):
    assert quote_digits([argument]) == [meant]


def test_precision_follows_the_hardware(make_config):
    assert make_config().precision.dtype == "fp32"
    assert make_config("hardware=v100-32g").precision.dtype == "fp16"
    assert make_config("hardware=v100-32g", "precision=fp32").precision.dtype == "fp32"


def test_groups_and_keys_mix_and_the_reward_model_has_the_models_names(make_config):
    config = make_config("ppo=tldr", "ppo.kl_coef=0.2", "hardware=dgx8x2", "model=opt-13b", "reward_model=opt-350m")
    assert (config.ppo.kl_coef, config.ppo.rollout_batch_size) == (0.2, 512)
    assert (config.hardware.nodes, config.hardware.gpus_per_node) == (2, 8)
    assert (config.model.hidden_size, config.reward_model.hidden_size) == (5120, 1024)


def test_loading_from_python_checks_too(make_config):
    expected = make_config()
    assert load_config(f"output_root={expected.output_root}") == expected
    with pytest.raises(ConfigError, match=r"^ppo\.gamma=2"):
        load_config("ppo.gamma=2")


@pytest.mark.parametrize(
    ("typed", "new"),
    [
        ("model.width=64", "model.hidden_size"),
        ("+reward_model.ffn=1", "reward_model.intermediate_size"),
        ("model={layers:1}", "model.num_hidden_layers"),
        ("critic_zero.bucket_elements=1000", "critic_zero.reduce_bucket_size"),
        ("data.tokenizer_vocabulary=300", "data.tokenizer_vocab_size"),
    ],
)
def test_a_key_that_was_renamed_is_told_by_its_new_name(typed, new):
    with pytest.raises(ConfigError, match=rf"the key has another name; did you mean {re.escape(new)}\?$"):
        compose_config(typed)


def test_the_new_name_of_every_renamed_key_is_a_key():
    for group, kind in types_of(Config).items():
        for old in RENAMED.get(kind, {}):
            assert current_name(f"{group}.{old}") in KEYS and f"{group}.{old}" not in KEYS
