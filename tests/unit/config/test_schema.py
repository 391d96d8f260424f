from itertools import zip_longest
from typing import get_origin

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support.quick import mark_slow

from rlhf.catalog.stage import stage_kinds
from rlhf.cli.prepare import resolve_config
from rlhf.config.checks import check
from rlhf.config.compose import config_root, register
from rlhf.config.keys import AUTO_KEYS, ENTRIES, KEYS, has_no_effect_but, leaf_keys, matches_prefix, without_none
from rlhf.config.schema import LORAS, ZEROS
from rlhf.config.values import check_values
from rlhf.experiment.fingerprint import result_keys

CONF = config_root() / "conf"
GROUPS = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in CONF.iterdir() if path.is_dir()}
GROUPS["reward_model"] = GROUPS["model"]
for group in ("zero", "lora"):
    GROUPS[group].remove("same")  # of the other roles: as the policy's
# Options of different groups, composed together: as many compositions as the largest group has options.
MIXES = [
    {group: option for group, option in zip(GROUPS, options, strict=True) if option is not None}
    for options in zip_longest(*GROUPS.values())
]
# The later ones hold models and data sets alone; what their files say test_catalogue.py and test_sets.py know of each.
OTHERS = max(len(options) for group, options in GROUPS.items() if group not in ("model", "reward_model", "data"))

PRESETS = [f"+{kind}={file.stem}" for kind in ("experiments", "sweeps") for file in (CONF.parent / kind).glob("*.yaml")]


def flat(values, prefix=""):
    """The dotted keys of nested dicts; a list is a value."""
    if not isinstance(values, dict):
        return {prefix.removesuffix(".")}
    return {key for name, value in values.items() for key in flat(value, f"{prefix}{name}.")}


def composed(*overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_conf_and_the_schema_have_the_same_keys():
    keys = leaf_keys()
    assert len(keys) == len(set(keys)) > 100
    assert flat(OmegaConf.to_container(composed(), resolve=False)) == set(keys)


def test_every_key_has_an_effect_and_every_number_a_range_or_choices():
    for name in leaf_keys():
        key = KEYS[name]
        assert key.effect is not None, f"give {name} or its group an effect, as key(effect='result')"
        if without_none(key.type) in (int, float) or name.endswith(".betas"):
            assert key.range is not None or key.choices, f"give {name} a range, as key(Range(0, 1))"
        assert not (key.range and key.choices), name


def test_a_key_that_decides_results_is_read_by_a_stage_and_all_but_names_by_a_benchmark():
    """A key with an effect on results that no stage's `result_keys` hold would change results behind the fingerprint."""
    kinds = stage_kinds().values()
    for name in leaf_keys():
        read = any(matches_prefix(name, kind.result_keys) for kind in kinds if not kind.is_benchmark)
        assert read or KEYS[name].effect != "result", name
        evaluates = name.startswith(("evaluate.", "evaluate_reward."))  # which no benchmark does
        assert (name in result_keys("bench")) == (KEYS[name].effect != "name" and not evaluates), name


def test_an_input_of_a_stage_counts_by_what_it_is():
    named = {given.key for kind in stage_kinds().values() for given in kind.inputs}
    named |= {"sft.data", "reward.data"}  # inputs where they are given alone
    assert named == {name for name, key in KEYS.items() if key.effect == "input"}


def test_a_path_counts_by_what_it_holds():
    assert all(KEYS[name].content == "model" for name in KEYS if name.endswith(".path"))
    assert {name for name, key in KEYS.items() if key.content == "records"} >= {"data.files.train", "ppo.ptx.file"}


def test_a_key_is_switched_on_by_keys_that_have_a_neutral_value():
    assert KEYS["ppo.ptx.column"].switches == ("ppo.ptx_coef",)
    for name, key in KEYS.items():
        for switch in key.switches:
            assert KEYS[switch].neutral is not ..., f"{name} is switched on by {switch}, which has no neutral value"


def test_a_neutral_value_is_one_that_its_key_may_hold():
    found = {name: key.neutral for name, key in KEYS.items() if key.neutral is not ...}
    assert found and not list(check_values(found))
    for name, value in found.items():
        kind = without_none(KEYS[name].type)
        assert (value is None and KEYS[name].optional) or isinstance(value, get_origin(kind) or kind)


def test_what_hardware_decides_may_be_auto_and_decides_no_result():
    assert "zero.stage" in AUTO_KEYS and "rollout.tensor_parallel" in AUTO_KEYS
    for name in AUTO_KEYS:
        assert KEYS[name].effect == "speed"
        assert "auto" in KEYS[name].choices or KEYS[name].range is not None


def test_stages_read_keys_and_groups_that_exist_and_name_them_once():
    for kind in stage_kinds().values():
        names = kind.result_keys
        assert set(names) <= set(ENTRIES)
        assert len(names) == len(set(names))
        assert not [name for name in names if any(name.startswith(other + ".") for other in names)]


@pytest.mark.parametrize("key", ["ppo.kl_coef", "sft.learning_rate", "model.hidden_size", "precision.dtype", "seed"])
def test_hyperparameters_decide_results(key):
    assert KEYS[key].effect == "result"


@pytest.mark.parametrize("key", ["hardware.nodes", "zero.stage", "sft.micro_batch_size", "hardware", "launcher"])
def test_where_a_stage_runs_decides_how_fast_it_is(key):
    assert has_no_effect_but(key, "speed", "name") and not has_no_effect_but(key, "name")


@pytest.mark.parametrize(
    "key", ["tracking.wandb.mode", "tracking", "name", "checkpoint.keep", "launcher.partition", "sweep"]
)
def test_names_decide_nothing(key):
    assert has_no_effect_but(key, "name")


@pytest.mark.parametrize("key", ["zero", "ppo", "ppo.actor", "experiments", "zero.no_such_key", "nothing"])
def test_what_may_change_a_result_is_not_taken_for_what_does_not(key):
    assert not has_no_effect_but(key, "speed", "name")


def test_a_prefix_covers_whole_names_only():
    assert matches_prefix("ppo.kl_coef", ("ppo",))
    assert matches_prefix("ppo.kl_coef", ("ppo.kl_coef",))
    assert not matches_prefix("ppo.kl_coef", ("ppo.kl",))
    assert not matches_prefix("rewards", ("reward",))


def test_every_group_is_in_the_table_of_contents():
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").defaults)
    named = {key for entry in defaults if isinstance(entry, dict) for key in entry}
    packages = {key for key in named if "@" in key}
    assert set(GROUPS) == {key for key in named - packages if not key.startswith("override ")}
    assert packages == {f"{key.split('_')[-1]}@{key}" for key in (*ZEROS, *LORAS)} - {"zero@zero", "lora@lora"}


@pytest.mark.parametrize("role", ["critic_zero", "reference_zero", "reward_zero", "critic_lora", "reward_lora"])
def test_each_role_follows_the_policys_option_until_it_has_its_own(make_config, role):
    group = role.split("_")[1]
    chosen, own = {"zero": ("2", "3"), "lora": ("r8", "r64")}[group]
    alone, both = make_config(f"{group}='{chosen}'"), make_config(f"{group}='{chosen}'", f"{group}@{role}='{own}'")
    assert getattr(alone, role) == getattr(alone, group) == getattr(both, group)
    assert getattr(both, role) == getattr(make_config(f"{group}='{own}'"), group) != getattr(both, group)


def test_a_key_of_the_policy_is_one_of_the_other_roles_until_they_have_their_own(make_config):
    """All but the adapters' learning rate: null is the role's own."""
    config = make_config("zero='3'", "zero.reduce_bucket_size=1000", "reward_zero.stage=1", "lora=r8", "critic_lora.rank=4",
                         "lora.only=false", "lora.learning_rate=0.1")  # fmt: skip
    assert [getattr(config, role).reduce_bucket_size for role in ZEROS] == [1000] * 4
    assert [getattr(config, role).stage for role in ZEROS] == [3, 3, 3, 1]
    assert [getattr(config, role).rank for role in LORAS] == [8, 4, 8]
    assert [getattr(config, role).only for role in LORAS] == [False] * 3
    assert [getattr(config, role).learning_rate for role in LORAS] == [0.1, None, None]


@pytest.mark.parametrize("group", ["zero", "lora"])
def test_what_is_the_same_has_all_keys(group):
    """A key that conf/<group>/same.yaml lacked would not follow the policy's."""
    default = {"zero": "0", "lora": "none"}[group]
    same, default = (list(OmegaConf.load(CONF / group / f"{name}.yaml")) for name in ("same", default))
    assert same == default


@pytest.mark.parametrize("mix", mark_slow(MIXES, MIXES[:OTHERS]), ids=lambda mix: ",".join(mix.values()))
def test_every_option_of_every_group_composes(make_config, mix):
    config = make_config(*(f"{group}='{option}'" for group, option in mix.items()))
    if "model" in mix:
        assert (config.model.name, config.reward_model.name) == (mix["model"], mix["reward_model"])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_into_a_configuration_that_can_run(make_config, preset):
    resolve_config(make_config(preset))  # which checks it, with what is chosen for each `auto`


def test_the_default_can_run(make_config):
    check(make_config())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sft.loss_on", "completion"),  # row 6
        ("reward.grouped", True),  # row 9
        ("reward.normalize", "bias"),  # row 10
        ("ppo.reward_clip", None),  # row 12
        ("ppo.kl_controller", "fixed"),  # row 19
        ("ppo.kl_target", 6.0),  # row 19
        ("ppo.kl_horizon", 10_000),  # row 19
        ("ppo.whiten_rewards", False),  # row 20
        ("ppo.gamma", 1.0),  # row 21
        ("ppo.gae_lambda", 0.95),  # row 21
        ("ppo.whiten_advantages", True),  # row 22
        ("ppo.clip_range", 0.2),  # row 23
        ("ppo.value_clip_range", 0.2),  # row 23
        ("ppo.value_coef", 0.1),  # row 23
        ("ppo.update_epochs", 4),  # row 25
        ("ppo.eps", 1e-5),  # row 26
        ("ppo.log_ratio_clip", 20.0),  # row 31
    ],
)
def test_defaults_are_those_of_the_checklist(make_config, key, value):
    group, name = key.split(".")
    assert getattr(getattr(make_config(), group), name) == value


def test_the_tldr_preset_is_the_papers(make_config):  # rows 19, 25, 26
    ppo = make_config("ppo=tldr").ppo
    assert (ppo.rollout_batch_size, ppo.batch_size, ppo.update_epochs, ppo.max_steps) == (512, 512, 4, 1953)
    assert (ppo.learning_rate, ppo.schedule, ppo.warmup_steps, ppo.kl_coef, ppo.eps) == (3e-6, "linear", 0, 0.05, 1e-5)
    assert (ppo.eos_penalty, ppo.eos_penalty_mode) == (-1.0, None)  # row 16: replaced if normalised
