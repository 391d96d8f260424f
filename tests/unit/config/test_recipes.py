"""A command that names a model composes the published recipe for it, value by value, and what the user gives wins."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml
from support.quick import mark_slow

from rlhf.catalog.recipe import OPT_RECIPES, OTHER_RECIPES, REWARD_MODELS, TINY_PARAMETERS
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.experiment.graph import build_graph

ROOT = Path(__file__).parents[3]
MODELS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "model").glob("*.yaml")}
REAL = sorted(name for name, stated in MODELS.items() if stated.get("num_parameters", 0) >= TINY_PARAMETERS)
# Small, middle and large ones of several families; CI tries all.
EACH = (
    "opt-1.3b", "opt-13b", "opt-66b", "gpt-neox-20b", "bloom-176b", "llama-3-8b", "qwen2.5-7b", "gemma-2-9b",
    "smollm2-135m",
)  # fmt: skip
TINY = sorted(name for name in MODELS if name.endswith("-tiny"))

# DeepSpeed-Chat's scripts of the three steps, by deployment (applications/DeepSpeed-Chat/training/*/training_scripts). A
# global batch is the one of a device times accumulation times the devices. What no script says is its main.py's default.
COMMON = {
    "data.source": "hub", "data.hub.name": "Dahoas/rm-static", "data.hub.train_split": "train",
    "data.hub.heldout_split": "test", "data.columns.prompt": "prompt", "data.columns.response": "chosen",
    "data.columns.chosen": "chosen", "data.columns.rejected": "rejected", "data.prompt_format": "{prompt}",
    "data.max_prompt_tokens": 256, "data.max_response_tokens": 256, "rollout.max_new_tokens": 256,
    "reward_model.path": "facebook/opt-350m", "critic_lora.rank": 0, "reward_lora.rank": 0,
    "sft.schedule": "cosine", "sft.warmup_steps": 0, "sft.betas": [0.9, 0.95], "sft.max_grad_norm": 1.0, "sft.eps": 1e-8,
    "reward.epochs": 1, "reward.learning_rate": 5e-5, "reward.weight_decay": 0.1, "reward.schedule": "cosine",
    "reward.warmup_steps": 0, "reward.betas": [0.9, 0.95], "reward.grouped": False, "reward.normalize": "none",
    "ppo.epochs": 1, "ppo.update_epochs": 1, "ppo.critic_learning_rate": 5e-6, "ppo.warmup_steps": 100,
    "ppo.schedule": "cosine", "ppo.kl_controller": "fixed", "ppo.kl_coef": 0.1, "ppo.reward_clip": 5.0, "ppo.gamma": 1.0,
    "ppo.gae_lambda": 0.95, "ppo.clip_range": 0.2, "ppo.value_clip_range": 0.2, "ppo.value_coef": 1.0,
    "ppo.eos_penalty": None, "ppo.whiten_advantages": False, "ppo.whiten_rewards": False, "ppo.eval_every": None,
    "ppo.critic": "reward",
}  # fmt: skip
ADAPTERS = {"lora.rank": 128, "lora.learning_rate": 5e-4, "lora.only": True}
SCRIPTS = {
    "opt-1.3b": {  # single_gpu/run_1.3b.sh, run_350m.sh
        **ADAPTERS, "lora.alpha": 4, "sft.epochs": 1, "sft.batch_size": 128, "sft.learning_rate": 1e-3,
        "sft.weight_decay": 0.0,
        "reward.batch_size": 64, "ppo.rollout_batch_size": 32, "ppo.batch_size": 32, "ppo.learning_rate": 9.65e-6,
        "ppo.weight_decay": 0.0, "ppo.critic_weight_decay": 0.0,
    },
    "opt-6.7b": {  # single_node/run_6.7b.sh, run_350m.sh
        "lora.rank": 0, "sft.epochs": 16, "sft.batch_size": 48, "sft.learning_rate": 9.65e-6, "sft.weight_decay": 0.0,
        "reward.batch_size": 32, "ppo.rollout_batch_size": 32, "ppo.batch_size": 32, "ppo.learning_rate": 9.65e-6,
        "ppo.weight_decay": 0.1, "ppo.critic_weight_decay": 0.1,
    },
    "opt-13b": {  # single_node/run_13b.sh, run_350m.sh
        **ADAPTERS, "lora.alpha": 6, "sft.epochs": 16, "sft.batch_size": 32, "sft.learning_rate": 1e-4,
        "sft.weight_decay": 0.0,
        "reward.batch_size": 32, "ppo.rollout_batch_size": 128, "ppo.batch_size": 128, "ppo.learning_rate": 5e-4,
        "ppo.weight_decay": 0.0, "ppo.critic_weight_decay": 0.0,
    },
    "opt-30b": {  # single_node/run_30b_lora.sh, run_350m.sh
        **ADAPTERS, "lora.alpha": 7, "sft.epochs": 16, "sft.batch_size": 32, "sft.learning_rate": 9.65e-6,
        "sft.weight_decay": 0.0, "reward.batch_size": 32, "ppo.rollout_batch_size": 32, "ppo.batch_size": 32,
        "ppo.learning_rate": 5e-4, "ppo.weight_decay": 0.1, "ppo.critic_weight_decay": 0.1,
    },
    "opt-66b": {  # multi_node/run_66b.sh, run_350m.sh
        **ADAPTERS, "lora.alpha": 8, "sft.epochs": 2, "sft.batch_size": 256, "sft.learning_rate": 1e-4,
        "sft.weight_decay": 0.1,
        "reward.batch_size": 128, "ppo.rollout_batch_size": 256, "ppo.batch_size": 256, "ppo.learning_rate": 5e-4,
        "ppo.weight_decay": 0.1, "ppo.critic_weight_decay": 0.1,
    },
    "llama-2-7b": {  # llama2/run_llama2_7b.sh
        "lora.rank": 0, "reward_model.path": "meta-llama/Llama-2-7b-hf", "sft.epochs": 4, "sft.batch_size": 32,
        "sft.learning_rate": 9.65e-6, "sft.weight_decay": 0.0, "reward.batch_size": 64, "reward.learning_rate": 9.65e-6,
        "ppo.rollout_batch_size": 8, "ppo.batch_size": 8, "ppo.learning_rate": 9.65e-6, "ppo.weight_decay": 0.1,
        "ppo.critic_weight_decay": 0.1,
    },
}  # fmt: skip
# What the README and --help tell to type.
COMMANDS = (
    ("opt-1.3b", "a6000"), ("opt-1.3b", "a100-80g"), ("opt-6.7b", "dgx8"), ("opt-13b", "dgx8"), ("opt-30b", "dgx8-80g"),
    ("opt-66b", "dgx8-80gx8"), ("llama-2-7b", "dgx8-80g"),
)  # fmt: skip
# A value of the demo's that no published recipe has, by its key.
DEMO_ONLY = {
    "sft.learning_rate": 6e-3, "reward.learning_rate": 4e-3, "ppo.learning_rate": 3e-4, "ppo.critic_learning_rate": 1e-3,
    "sft.batch_size": 16, "reward.batch_size": 8, "ppo.rollout_batch_size": 64, "rollout.max_new_tokens": 48,
    "data.source": "demo", "data.max_prompt_tokens": 64, "data.max_response_tokens": 64, "sft.warmup_steps": 20,
    "ppo.update_epochs": 4, "ppo.kl_coef": 0.15, "ppo.eos_penalty": -1.0, "ppo.eval_every": 10, "reward.normalize": "bias",
}  # fmt: skip


def values(config, keys):
    return {key: get_key(config, key) for key in keys}


@pytest.mark.parametrize(("model", "hardware"), COMMANDS)
def test_a_model_takes_the_values_of_its_published_script(model, hardware, make_config):
    expected = COMMON | SCRIPTS[model]
    assert values(make_config(f"model={model}", f"hardware={hardware}"), expected) == expected


@pytest.mark.parametrize("name", mark_slow(TINY, ("opt-tiny", "llama-tiny", "gpt2-tiny")))
def test_a_tiny_model_takes_the_demos_values(name, make_config):
    config = make_config(f"model={name}")
    assert config.reward_model.name == name
    assert values(config, DEMO_ONLY) == DEMO_ONLY


@pytest.fixture(scope="module")
def compose(make_config):
    """`compose(name)`: the configuration of a command that names this model alone; each is composed once."""
    return cache(lambda name: make_config(f"model={name}"))


@pytest.mark.parametrize("name", mark_slow(REAL, EACH))
def test_no_model_takes_a_value_of_the_demo(name, compose):
    config = compose(name)
    # 64 sequences a rollout are those of the reference run too, on 16 GPUs.
    shared = {"ppo.rollout_batch_size": 64} if config.sft.batch_size == 128 else {}
    found = values(config, DEMO_ONLY)
    assert {key: value for key, value in found.items() if value == DEMO_ONLY[key]} in ({}, shared)


@pytest.mark.parametrize("name", mark_slow(REAL, EACH))
def test_the_reward_model_is_no_larger_than_the_policy_and_has_its_tokenizer(name, compose):
    config = compose(name)
    assert config.reward_model.num_parameters <= config.model.num_parameters
    assert config.reward_model.family == config.model.family
    prefix = next((prefix for prefix in REWARD_MODELS if name.startswith(prefix)), None)
    allowed = {name} if prefix is None else {name, REWARD_MODELS[prefix]}
    assert config.reward_model.name in allowed


def test_every_option_that_a_recipe_names_is_there():
    for table in (OPT_RECIPES, OTHER_RECIPES):
        for _, recipe in table:
            places = {"length": "rollout/length", "critic_lora": "lora", "reward_lora": "lora"}
            for group in ("sft", "reward", "ppo", "data", "length", "lora", "critic_lora", "reward_lora"):
                assert (ROOT / "conf" / places.get(group, group) / f"{getattr(recipe, group)}.yaml").is_file()
    assert set(REWARD_MODELS.values()) <= set(MODELS)


def test_what_the_user_gives_wins(make_config):
    config = make_config(
        "model=opt-13b", "sft=demo", "reward_model=opt-125m", "data=files", "lora=none", "ppo.kl_coef=0.3",
        "rollout=hf", "rollout.max_new_tokens=100",
    )  # fmt: skip
    assert (config.sft.learning_rate, config.reward_model.name, config.data.source) == (6e-3, "opt-125m", "files")
    assert (config.lora.rank, config.ppo.kl_coef, config.ppo.learning_rate) == (0, 0.3, 5e-4)
    assert (config.rollout.engine, config.rollout.max_new_tokens) == ("hf", 100)


def test_a_loss_on_pairs_takes_its_own_values_and_what_the_user_gives_wins(make_config):
    def values(*overrides):
        dpo = make_config(*overrides).dpo
        return dpo.beta, dpo.learning_rate, dpo.nll_coef, dpo.simpo_gamma

    assert values() == values("dpo.loss=kto") == (0.1, 1e-3, 0.0, 0.5)
    assert values("dpo.loss=simpo") == (2.0, 3e-4, 0.0, 0.5) and values("dpo.loss=cpo") == (0.1, 3e-4, 1.0, 0.5)
    assert values("dpo.loss=simpo", "dpo.beta=10", "dpo.learning_rate=1e-4") == (10.0, 1e-4, 0.0, 0.5)
    assert values("model=pythia-1b") == (0.1, 5e-7, 0.0, 0.5)
    assert values("model=pythia-1b", "dpo.loss=simpo") == (2.0, 6e-7, 0.0, 1.0)


@pytest.mark.parametrize("engine", mark_slow(["hybrid", "hf", "paged", "deepspeed"], ["paged"]))
def test_responses_are_as_long_whatever_samples_them(engine, make_config):
    assert make_config("model=opt-13b", f"rollout={engine}").rollout.max_new_tokens == 256
    assert make_config(f"rollout={engine}").rollout.max_new_tokens == 48


def test_each_point_of_a_sweep_takes_the_recipe_of_its_model(make_config):
    from rlhf.config.command import read_command
    from rlhf.config.points import Composer

    with Composer(read_command(["-m", "model=opt-tiny,opt-1.3b,opt-13b"])) as composer:
        found = [composer.compose_job(words).config.sft.learning_rate for words in composer.points]
    assert found == [6e-3, 1e-3, 1e-4]


def write_settings(place, **settings):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(settings))
    return place


def opt_settings(name):
    stated = MODELS[name]
    return {
        "model_type": "opt", "num_hidden_layers": stated["num_hidden_layers"], "hidden_size": stated["hidden_size"],
        "ffn_dim": stated["intermediate_size"], "vocab_size": stated["vocab_size"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["opt-1.3b", "opt-13b", "opt-66b"])
def test_a_model_of_your_own_takes_the_recipe_of_its_shape(name, make_config, tmp_path):
    place = write_settings(tmp_path, **opt_settings(name) | {"vocab_size": 50265})
    config = make_config("model=local", f"model.path={place}")
    expected = COMMON | SCRIPTS[name]
    assert values(config, expected) == expected


def test_a_model_of_your_own_takes_the_recipe_of_its_size_and_family(make_config, tmp_path):
    llama = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32000}
    small = write_settings(tmp_path / "small", **llama, hidden_size=2048, num_hidden_layers=20, intermediate_size=5632)
    large = write_settings(tmp_path / "large", **llama, hidden_size=5120, num_hidden_layers=64, intermediate_size=20000)
    tiny = write_settings(tmp_path / "tiny", **llama | {"vocab_size": 768}, hidden_size=64, num_hidden_layers=2)
    rates = {
        place.name: make_config("model=local", f"model.path={place}").sft.learning_rate for place in (small, large, tiny)
    }
    assert rates == {"small": 9.65e-6, "large": 9.65e-6, "tiny": 6e-3}
    assert make_config("model=local", f"model.path={large}").lora.rank == 128
    assert make_config("model=local", f"model.path={large}").reward_model.path is None  # then it starts from the policy


def test_an_option_of_your_own_takes_the_recipe_of_the_model_that_it_names(tmp_path):
    """One in a directory of yours, which states no size or states it in a file that it builds on."""
    from rlhf.config.command import read_command
    from rlhf.config.points import Composer

    place = write_settings(tmp_path / "weights", **opt_settings("opt-13b"))
    options = tmp_path / "conf" / "model"
    options.mkdir(parents=True)
    (options / "named.yaml").write_text(f"defaults: [local, _self_]\nname: named\npath: {place}\n")
    (options / "derived.yaml").write_text("defaults: [opt-13b, _self_]\nname: derived\n")
    for name in ("named", "derived"):
        words = ["--config-dir", str(tmp_path / "conf"), f"model={name}", "reward_model=opt-350m"]
        with Composer(read_command(words)) as composer:
            config = composer.compose_job(composer.points[0]).config
        assert (config.model.name, config.sft.learning_rate, config.lora.rank) == (name, 1e-4, 128)


def test_adapters_take_the_recipe_of_what_they_are_put_on(make_config, tmp_path):
    base = write_settings(tmp_path / "base", **opt_settings("opt-13b"))
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert make_config("model=local", f"model.path={adapters}").ppo.rollout_batch_size == 128


def test_a_hub_model_of_unknown_size_is_refused_before_it_takes_a_recipe(load_config):
    with pytest.raises(ConfigError, match=r"^model\.path=org/no-such-model: .*HF_HUB_OFFLINE.*rlhf fetch.*HF_HOME"):
        load_config("model=local", "model.path=org/no-such-model")


@pytest.mark.parametrize(
    ("typed", "name", "path"),
    [
        ("model=facebook/opt-125m", "opt-125m", "facebook/opt-125m"),
        ("model=Qwen/Qwen2.5-7B", "qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("reward_model=facebook/opt-350m", "opt-350m", "facebook/opt-350m"),
        ("reward_model=some/model", "local", "some/model"),
        ("reward_model=./dir/of/mine", "local", "./dir/of/mine"),
    ],
)
def test_a_model_is_typed_as_it_is_known(typed, name, path, make_config):
    config = make_config(typed)
    found = getattr(config, typed.partition("=")[0])
    assert (found.name, found.path) == (name, path)


def test_a_directory_typed_as_a_model_is_the_model_there(make_config, tmp_path):
    place = write_settings(tmp_path, **opt_settings("opt-13b"))
    config = make_config(f"model={place}")
    assert (config.model.name, config.model.path, config.ppo.batch_size) == ("local", str(place), 128)


def test_options_and_paths_are_not_swept_together(load_config):
    with pytest.raises(ConfigError, match=r"^model=opt-tiny,org/one: .* model=local model\.path="):
        load_config("model=opt-tiny,org/one")


@pytest.mark.parametrize(("model", "hardware"), COMMANDS)
def test_a_recipe_passes_every_check(model, hardware, load_config):
    """Its batches can be shared by the ranks, its sequences fit."""
    assert load_config(f"model={model}", f"hardware={hardware}").model.name == model


@pytest.mark.parametrize("preset", ["opt-1.3b-a6000", "opt-13b-dgx8", "opt-66b-dgx8-80gx8", "llama-2-7b-dgx8-80g"])
def test_a_preset_of_a_script_is_the_plain_command_with_the_scripts_layout(preset, load_config):
    """Its stages are the same ones, by fingerprint."""
    model, hardware = next((model, hardware) for model, hardware in COMMANDS if preset == f"{model}-{hardware}")
    of_preset, plain = load_config(f"+experiments={preset}"), load_config(f"model={model}", f"hardware={hardware}")
    prints = [[node.fingerprint for node in build_graph(config)] for config in (of_preset, plain)]
    assert prints[0] == prints[1]


def test_the_documentation_has_the_table():
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith(("| opt | ", "| others"))
    ]
    told = [(row[0], row[1], *row[2:6]) for row in rows if row[1] == "any" or row[1].endswith("B")]
    written = [
        (family, "any" if most == float("inf") else f"{most / 1e9:g}B", recipe.sft, recipe.reward, recipe.ppo, recipe.lora)
        for family, table in (("opt", OPT_RECIPES), ("others", OTHER_RECIPES))
        for most, recipe in table
    ]
    assert [row for row in told if row[2].startswith("deepspeed")] == written
