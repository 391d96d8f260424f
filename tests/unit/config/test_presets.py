"""Every preset of experiments/ and sweeps/ composes, passes every check, and is what its comment says."""

import re
from functools import cache

import pytest
from support.command import ROOT
from support.quick import mark_slow

from rlhf.cli.prepare import resolve_config
from rlhf.config.command import read_command
from rlhf.config.derive import ranks, roles, trains_adapters_only
from rlhf.config.points import Composer
from rlhf.experiment.graph import build_graph
from rlhf.planner.memory import GIB, state_bytes

BENCHMARK_RECIPES = ("bench", "deepspeed-chat-benchmark")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml") if path.stem not in BENCHMARK_RECIPES)
STAGES = ("sft", "reward", "ppo")

# Points, and distinct stages by kind.
SWEEPS = {
    "algorithms": (33, {"sft": 3, "reward": 3, "ppo": 33}),
    "best-of-n": (3, {"sft": 1, "reward": 1, "ppo": 0}),
    "details": (24, {"sft": 2, "reward": 2, "ppo": 24}),
    "ensembles": (8, {"sft": 2, "reward": 8, "ppo": 8}),
    "kl": (8, {"sft": 2, "reward": 2, "ppo": 8}),
    "kl-placement": (10, {"sft": 2, "reward": 2, "ppo": 10}),
    "lr": (8, {"sft": 2, "reward": 2, "ppo": 8}),
    "model-size": (6, {"sft": 6, "reward": 6, "ppo": 6}),
    "overoptimisation": (12, {"sft": 1, "reward": 3, "ppo": 12}),
    "overoptimisation-data": (8, {"sft": 2, "reward": 8, "ppo": 8}),
    "ppo-vs-deepspeed-chat": (6, {"sft": 3, "reward": 3, "ppo": 6}),
}
# The few points of these are composed whenever tests run; of each other preset test_schema.py composes the first.
QUICK = ("kl", "overoptimisation", "best-of-n")
# Of benchmarks: points.
BENCHMARKS = {"systems": 20}
# The preset's scale: ranks, and the global batches of the three stages.
SCALES = {
    "llama-2-7b-dgx8-80g": (8, 32, 64, 8),
    "opt-1.3b-a6000": (1, 128, 64, 32),
    "opt-1.3b-v100x16": (16, 128, 64, 64),
    "opt-13b-dgx8": (8, 32, 32, 128),
    "opt-66b-dgx8-80gx8": (64, 256, 128, 256),
    "tldr-pythia": (8, 128, 64, 512),
}


def comment(group, name):
    """The preset's comment, in one line."""
    lines = (ROOT / group / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    return " ".join(line.removeprefix("# ") for line in lines[1:] if line.startswith("#"))


@cache
def points(name, *overrides):
    """The configurations of a sweep's points, by what is swept."""
    preset = f"+sweeps={name}"
    with Composer(read_command(["-m", preset, *overrides])) as composer:
        return {
            tuple(word for word in words if word not in (preset, *overrides)): resolve_config(
                composer.compose_job(words).config
            )
            for words in composer.points
        }


def fingerprints(name, stage):
    """The fingerprint of a stage in every point."""
    return [node.fingerprint for config in points(name).values() for node in build_graph(config) if node.stage == stage]


def test_the_tables_name_every_preset():
    assert sorted([*SWEEPS, *BENCHMARKS]) == sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
    assert sorted(SCALES) == EXPERIMENTS


@pytest.mark.parametrize("name", mark_slow(SWEEPS, QUICK))
def test_a_sweep_has_as_many_points_and_stages_as_it_says(name):
    count, stages = SWEEPS[name]
    assert len(points(name)) == count
    assert {stage: len(set(fingerprints(name, stage))) for stage in STAGES} == stages
    said = re.search(r"([\d x]+) = (\d+) points; (\d+) SFT, (\d+) reward and (\d+) PPO stages\.", comment("sweeps", name))
    assert [int(number) for number in said.groups()[1:]] == [count, *stages.values()]
    factors = [int(factor) for factor in said[1].split(" x ")]
    swept = zip(*points(name), strict=True)  # one tuple per key that is swept
    assert factors == [len(set(values)) for values in swept]
    assert {config.name for config in points(name).values()} == {name}


@pytest.mark.parametrize("name", mark_slow(SWEEPS, QUICK))
def test_a_sweep_runs_on_the_demo(name):
    for config in points(name).values():
        assert (config.data.source, config.hardware.device, config.model.path) == ("demo", "cpu", None)
        for model in (config.model, config.reward_model):
            block = (
                4 * model.hidden_size * (model.hidden_size + 1)
                + 2 * model.hidden_size * model.intermediate_size
                + model.intermediate_size
                + 5 * model.hidden_size
            )
            tables = (model.vocab_size + model.max_position_embeddings + 2) * model.hidden_size
            assert model.num_parameters == model.num_hidden_layers * block + tables + 2 * model.hidden_size  # an OPT's


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_sweep_of_benchmarks_has_as_many_points_as_it_says(name):
    assert len(points(name)) == BENCHMARKS[name] == len(set(fingerprints(name, "bench")))
    said = re.search(r"([\d x]+) = (\d+) points, each a benchmark of its own\.", comment("sweeps", name))
    assert [int(factor) for factor in said[1].split(" x ")] == [
        len(set(values)) for values in zip(*points(name), strict=True)
    ]
    assert int(said[2]) == BENCHMARKS[name]
    for config in points(name).values():
        assert (config.stages, config.name, config.model.path) == (["bench"], name, None)
        assert (config.rollout.max_new_tokens, config.rollout.fixed_length) == (256, True)  # the recipe's


@pytest.mark.slow
def test_systems_goes_over_zero_adapters_offload_and_engines():
    found = {(c.zero.stage, c.zero.offload_optimizer, c.lora.rank, c.rollout.engine) for c in points("systems").values()}
    assert len(found) == 20
    assert {(stage, offload) for stage, offload, *_ in found} == {(0, False), (2, False), (2, True), (3, False), (3, True)}
    for large in points("systems", "model=opt-1.3b", "reward_model=opt-350m", "hardware=a100-80g").values():
        assert (large.model.path, large.model.num_hidden_layers, large.precision.dtype) == (None, 24, "bf16")


def test_the_recipe_of_benchmarks_is_the_published_one(load_config):
    config = load_config("+experiments=bench")
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.fixed_length) == (256, 256, True)
    assert (config.ppo.update_epochs, config.ppo.batch_size) == (1, config.ppo.rollout_batch_size)
    assert [node.stage for node in build_graph(config)] == ["bench"]
    assert "BenckmarkSetting.md" in comment("experiments", "bench")


def test_the_reward_model_grows_with_the_model():
    assert [(c.model.num_hidden_layers, c.reward_model.num_hidden_layers) for c in points("model-size").values()] == [
        (1, 1), (1, 1), (2, 2), (2, 2), (4, 4), (4, 4),
    ]  # fmt: skip


def test_over_optimisation_changes_the_reward_model_alone():
    for config in points("overoptimisation").values():
        assert (config.model.num_hidden_layers, config.ppo.critic) == (2, "actor")
    assert {config.reward_model.num_hidden_layers for config in points("overoptimisation").values()} == {1, 2, 4}


def test_both_ppos_get_the_same_models_prompts_and_learning_rates(load_config):
    by_seed = {}
    for config in points("ppo-vs-deepspeed-chat").values():
        sft, reward, ppo = (node.fingerprint for node in build_graph(config))
        by_seed.setdefault(config.seed, []).append((sft, reward, ppo, config.ppo))
    for (sft, reward, ppo, ours), (their_sft, their_reward, their_ppo, theirs) in by_seed.values():
        assert (sft, reward) == (their_sft, their_reward)
        assert ppo != their_ppo
        for key in ("epochs", "rollout_batch_size", "learning_rate", "critic_learning_rate", "warmup_steps"):
            assert getattr(ours, key) == getattr(theirs, key)
        assert (ours.update_epochs, theirs.update_epochs, theirs.reward_clip) == (4, 1, 5.0)
        default = load_config().ppo
        assert (ours.epochs, ours.learning_rate, ours.critic_learning_rate) == (
            default.epochs, default.learning_rate, default.critic_learning_rate,
        )  # fmt: skip
    assert sorted(by_seed) == [1, 2, 3]


@pytest.fixture(scope="module")
def experiment(load_config):
    return cache(lambda name, *overrides: load_config(f"+experiments={name}", *overrides))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_the_scale_of_its_source_and_names_it(name, experiment):
    config = experiment(name)
    batches = (config.sft.batch_size, config.reward.batch_size, config.ppo.batch_size)
    assert (ranks(config), *batches) == SCALES[name]
    assert config.ppo.rollout_batch_size == config.ppo.batch_size
    assert config.name == name
    assert config.data.hub.name in ("Dahoas/rm-static", "trl-lib/tldr-preference")
    assert [node.stage for node in build_graph(config)] == list(STAGES)
    assert re.search(r"arXiv \d{4}\.\d{5}|training_scripts/\w+", comment("experiments", name))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiments_state_leaves_room_on_its_devices(name, experiment):
    config = experiment(name)
    for stage in STAGES:
        state = sum(sum(state_bytes(role, config).values()) for role in roles(config, stage)) / GIB
        assert state < 0.5 * config.hardware.memory_gib, stage


@pytest.mark.parametrize("name", mark_slow(EXPERIMENTS, ("opt-13b-dgx8", "tldr-pythia")))
def test_an_experiment_on_other_hardware_is_the_same_experiment(name, experiment, load_config):
    config = experiment(name)
    precision = f"precision={config.precision.dtype}"
    other = load_config(f"+experiments={name}", "hardware=h100", "hardware.nodes=1", "hardware.gpus_per_node=8", precision)
    assert (ranks(other), other.hardware.gpu) == (8, "H100-SXM5-80GB")
    assert [node.fingerprint for node in build_graph(other)] == [node.fingerprint for node in build_graph(config)]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("opt")])
def test_deepspeed_chats_adapters_are_the_policys_alone(name, experiment):
    config = experiment(name)
    assert not trains_adapters_only(config.critic_lora)
    assert not trains_adapters_only(config.reward_lora)
    if trains_adapters_only(config.lora):
        assert config.lora.alpha == round((config.model.hidden_size / config.lora.rank) ** 0.5)
        assert config.lora.learning_rate == 5e-4


@pytest.mark.parametrize("overrides", [("model=pythia-2.8b",), ("model=pythia-6.9b", "zero=3")])
def test_the_other_sizes_of_tldr(overrides, experiment):
    config = experiment("tldr-pythia", *overrides)
    assert config.model.name == config.reward_model.name == overrides[0].split("=")[1]
    assert (
        sum(sum(state_bytes(role, config).values()) for role in roles(config, "ppo")) / GIB
        < 0.5 * config.hardware.memory_gib
    )


@pytest.mark.parametrize("model", mark_slow(["opt-1.3b", "opt-6.7b", "opt-13b", "opt-66b"], ["opt-1.3b", "opt-66b"]))
@pytest.mark.parametrize("hardware", mark_slow(["a100-80g", "dgx8-80g", "dgx8-80gx8"], ["dgx8-80gx8"]))
def test_the_published_benchmark_is_step_3_of_any_model_on_any_hardware(model, hardware, make_config):
    config = make_config("+experiments=deepspeed-chat-benchmark", f"model={model}", f"hardware={hardware}")
    assert (config.stages, config.model.name, config.reward_model.name) == (["ppo"], model, "opt-350m")
    assert (config.ppo.actor, config.ppo.reward, config.ppo.critic) == (config.model.path, "facebook/opt-350m", "reward")
    lengths = config.data.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.fixed_length
    assert lengths == (256, 256, True)
    assert (config.ppo.rollout_batch_size, config.ppo.batch_size, config.ppo.update_epochs) == (1024, 1024, 1)
    assert config.ppo.max_steps == 264_292 // 1024
    assert config.ppo.epochs * (76_256 // 1024) >= config.ppo.max_steps  # rm-static has so many rows
