"""What a single key may hold, for every key of the schema, and that everything that is wrong is said at once."""

import copy
import math
import time

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rlhf.catalog.families import FAMILIES
from rlhf.cli.run import Invalid
from rlhf.config.checks import check
from rlhf.config.compose import config_root, register, to_config
from rlhf.config.errors import ConfigError, ConfigErrors
from rlhf.config.keys import KEYS, get_key, without_none
from rlhf.config.schema import Config
from rlhf.planner.plan import plan_stage

PLAIN = {name: without_none(key.type) for name, key in KEYS.items()}
FLOATS = [key for key, kind in PLAIN.items() if kind is float]
INTEGERS = [key for key, kind in PLAIN.items() if kind is int]
BOOLEANS = [key for key, kind in PLAIN.items() if kind is bool]
TEXTS = [key for key, kind in PLAIN.items() if kind is str]


@pytest.fixture(scope="module")
def default():
    """The default as Hydra composes it, resolved, as nested dicts."""
    register()
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("config"), resolve=True)


def told(default, **changes):
    """The lines that are said of the default with other values, by dotted key written with __."""
    values = copy.deepcopy(default)
    for key, value in changes.items():
        *groups, name = key.split("__")
        place = values
        for group in groups:
            place = place[group]
        place[name] = value
    with pytest.raises(ConfigError) as error:
        check(to_config(OmegaConf.create(values)))
    return str(error.value).splitlines()


def is_told(default, key, value):
    """Whether the value is refused, in a line that begins with its key."""
    return any(line.startswith(key) for line in told(default, **{key.replace(".", "__"): value}))


def test_the_schema_has_keys_of_every_kind():
    assert min(map(len, (FLOATS, INTEGERS, BOOLEANS, TEXTS))) > 10


def untold(default, keys, value):
    """The keys that may hold the value, of these, each of which is given it at once."""
    lines = told(default, **{key.replace(".", "__"): value for key in keys})
    return [key for key in keys if not any(line.startswith(f"{key}=") or line.startswith(f"{key}[") for line in lines)]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, 10**400, "0.1", True])
def test_every_number_has_a_range_and_is_finite(default, value):
    assert all(math.isfinite(KEYS[key].range.low) and math.isfinite(KEYS[key].range.high) for key in FLOATS)
    assert untold(default, FLOATS, value) == []


@pytest.mark.parametrize("value", [10**400, -1, "1", 1.0, True])
def test_every_whole_number_has_an_end_on_both_sides(default, value):
    assert untold(default, INTEGERS, value) == []


@pytest.mark.parametrize("value", [2, 1_000_000, 1, 0, "yes", "true"])
def test_true_and_false_are_the_only_booleans(default, value):
    assert untold(default, BOOLEANS, value) == []


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.choices])
def test_a_word_that_is_no_choice_is_refused(default, key):
    kind = PLAIN[key]
    word = 7 if kind is int else "nonsense" if kind is str else ["nonsense"]
    assert any(
        line.startswith(f"{key}=") and "choose one of" in line for line in told(default, **{key.replace(".", "__"): word})
    )


@pytest.mark.parametrize("value", ["", "  ", "a\0b", "\udc80", True, 1e5], ids=repr)
def test_no_text_is_empty_or_holds_what_cannot_be_written(default, value):
    assert untold(default, TEXTS, value) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("ppo.kl_coef=1e400", "ppo.kl_coef=inf: out of range; give a number at least 0 and at most 1e+06"),
        ("ppo.eos_penalty=nan", "ppo.eos_penalty=nan: out of range; "),
        ("rollout.temperature=1e-30", "rollout.temperature=1e-30: out of range; "),
        ("rollout.temperature=1e30", "rollout.temperature=1e+30: out of range; "),
        ("sft.learning_rate=1e9", "sft.learning_rate=1000000000.0: out of range; "),
        ("ppo.ema_decay=1", "ppo.ema_decay=1.0: out of range; give a number at least 0 and below 1"),
        ("sft.betas=[[0.9],[0.95]]", "sft.betas[0]=[0.9]: wrong type; give a number"),
        (f"ppo.kl_coef={'9' * 400}", "ppo.kl_coef=" + "9" * 108 + "..." + "9" * 60 + ": out of range; "),
        (f"seed={'9' * 5000}", "override=seed=999"),
        (f"sft.betas={'[' * 3000}1{']' * 3000}", "override=sft.betas=[[["),
        ("rollout.stop=[[a]]", "rollout.stop[0]=['a']: wrong type; give text"),
        ("launcher.additional={a:{b:1}}", "launcher.additional.a={'b': 1}: wrong type; give a number or text"),
        ("ppo.whiten_advantages=1000000", "ppo.whiten_advantages=1000000: wrong type; give true or false"),
        ("dry_run=2", "dry_run=2: wrong type; give true or false"),
        ("seed='1'", "seed=1: wrong type; give a whole number"),
        ("name=1e5", "name=100000.0: wrong type; quote it"),
        ("output_root=''", "output_root='': it is empty; "),
        ("ppo.actor=''", "ppo.actor='': it is empty; "),
        ("stages=[sft,sft]", "stages=['sft', 'sft']: a stage is named twice; name each once: stages=[sft]"),
        ("model.revision=main", "model.revision=main: there is no hub model it could be of; give a hub id as model.path"),
        ("zero=plusplus", "zero.zero_hpz_partition_size=1: a second copy of the weights"),
    ],
)
def test_nonsense_is_refused_with_key_value_and_fix(load_config, override, line):
    with pytest.raises(ConfigError) as error:
        load_config(override)
    assert any(found.startswith(line) for found in str(error.value).splitlines()), str(error.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("lora=r64", "model.hidden_size=32", "model.num_attention_heads=2", "model.head_dim=16",
         "model.word_embed_proj_dim=32"),
         "lora.rank=64: adapters of a rank above the model's width, 32, are larger than its weights; give at most 32"),
        (("lora=r8", "lora.target_modules=[c_attn]"),
         "lora.target_modules=c_attn: a opt has no such linear layer that can be adapted; choose among q_proj, k_proj"),
        (("lora=r8", "lora.target_modules=[lm_head]"), "lora.target_modules=lm_head: "),  # it is the embedding too
        (("ppo.kl_controller=adaptive", "ppo.kl_coef=0"), "ppo.kl_coef=0.0: the adaptive controller multiplies"),
        (("data.files.train=a.jsonl",), "data.files.train=a.jsonl: data.source=demo does not read it; set data=files"),
        (("ppo.ptx.hub=org/texts",), "ppo.ptx.hub=org/texts: ppo.ptx.source=demonstrations does not read it"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_together_are_refused(load_config, overrides, line):
    with pytest.raises(ConfigError) as error:
        load_config(*overrides)
    assert any(found.startswith(line) for found in str(error.value).splitlines()), str(error.value)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ('{"q": "{prompt}"}', 'write {{"q": "{prompt}"}}'),
        ("{prompt} {name}", "write {prompt} {{name}}"),
        ("{{a}} {prompt} }", "write {{a}} {prompt} }}"),
        ("{prompt:>100000000}", "write {prompt}, without : or !"),
        ("{prompt!r}", "write {prompt}, without : or !"),
        ("{prompt} {prompt}", "add {prompt}, once"),
        ("{0} {prompt.x}", "add {prompt}, once"),
        ("Human:", "add {prompt}, once"),
    ],
)
def test_the_prompts_format_holds_the_prompt_and_no_other_single_braces(make_config, text, fix):
    config = make_config()
    config.data.prompt_format = text
    with pytest.raises(ConfigError, match=r"^data\.prompt_format=") as error:
        check(config)
    assert fix in str(error.value)
    if "write" in fix and "without" not in fix:
        config.data.prompt_format = str(error.value).partition("; write ")[2]
        check(config)


def test_everything_that_is_wrong_is_said_at_once(load_config):
    started = time.process_time()
    with pytest.raises(ConfigErrors) as error:
        load_config(
            "sft.epochs=0", "ppo.gamma=2", "rollout.min_new_tokens=99", "stages=[sft,reward,ppo,sft]", "ppo.actor=/tmp",
            "hardware.gpus_per_node=3",
        )  # fmt: skip
    assert time.process_time() - started < 5
    keys = [line.partition("=")[0] for line in str(error.value).splitlines()]
    assert {"sft.epochs", "ppo.gamma", "rollout.min_new_tokens", "stages", "ppo.actor", "sft.batch_size"} <= set(keys)
    assert len(keys) == len(set(keys)) == len(error.value.problems)
    with pytest.raises(ConfigError) as error:  # unknown keys and wrong types too
        load_config("+sft.epoch=1", "sft.epochs=two", "+ppo.gama=1", "ppo.gamma=2", "dry_run=2")
    keys = [line.partition("=")[0] for line in str(error.value).splitlines()]
    assert sorted(keys) == ["dry_run", "ppo.gama", "ppo.gamma", "sft.epoch", "sft.epochs"]


@pytest.mark.parametrize("size", ["9999991", "10000000"])
def test_a_very_large_batch_is_planned_or_refused_within_seconds(load_config, size):
    """9999991 is prime."""
    started = time.process_time()
    words = [f"{key}={size}" for key in ("sft.batch_size", "ppo.batch_size", "ppo.rollout_batch_size")]
    words += ["sft.micro_batch_size=4000", "rollout.samples_per_prompt=4000"]
    if size == "9999991":
        with pytest.raises(ConfigError):
            load_config(*words)
    else:
        assert not plan_stage(load_config(*words), "ppo", None).fits  # the cache of so many rows
    assert time.process_time() - started < 3


def test_a_sweep_names_the_point_in_every_line():
    problems = ConfigErrors([ConfigError("a", 1, "wrong", "mend it"), ConfigError("b", 2, "wrong", "mend it")])
    lines = str(Invalid([("seed=1", problems), ("seed=2", problems)], 2)).splitlines()
    assert lines == [
        f"seed={seed}: {key}={value}: wrong; mend it" for seed in (1, 2) for key, value in (("a", 1), ("b", 2))
    ]


def test_a_point_counts_once_however_many_of_its_stages_have_a_problem():
    problem = ConfigError("a", 1, "wrong", "mend it")
    found = [(f"seed={seed}", problem) for seed in range(7) for _ in ("ppo", "evaluate")]
    assert str(Invalid(found, 7)) == "seed=0 and 6 more points: a=1: wrong; mend it"


def test_a_value_is_shown_on_one_line():
    error = ConfigError("name", "a\nb\x1b[31m" + "x" * 1000, "wrong", "mend it")
    assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 300


def test_the_default_keeps_every_rule(default):
    config = to_config(OmegaConf.create(default))
    check(config)
    assert isinstance(config, Config) and all(get_key(config, key) is not ... for key in KEYS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layers_of_a_family_are_those_of_its_model(make_config, family):
    """On PyTorch's meta device, without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf.models.families import build_hf_config
    from rlhf.models.lora import linear_names

    model = make_config(f"model={family.replace('_', '-')}-tiny").model
    with torch.device("meta"):
        names = linear_names(AutoModelForCausalLM.from_config(build_hf_config(model)))
    assert {name.rpartition(".")[2] for name in names} == {*FAMILIES[family].layer_names.leaves, "lm_head"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zero.stage", True), ("zero.stage", None), ("zero.stage", [1, 2]), ("zero.stage", "2"), ("zero.offload_param", 1),
        ("zero.offload_optimizer", None), ("sft.gradient_checkpointing", 0), ("ppo.offload_idle", "yes"),
        ("rollout.tensor_parallel", None), ("rollout.tensor_parallel", True), ("rollout.micro_batch_size", [1]),
        ("rollout.gather", None),
    ],
)  # fmt: skip
def test_what_may_be_auto_takes_nothing_else_that_looks_like_its_values(default, key, value):
    assert is_told(default, key, value)
