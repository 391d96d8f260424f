import json
import re

import pytest

from rlhf.catalog.stage import kind_of, stage_kinds
from rlhf.config.keys import KEYS, leaf_keys, matches_prefix
from rlhf.experiment.fingerprint import content_id, fingerprint, result_config, result_keys

STAGES = ("sft", "reward", "ppo", "dpo")  # those that train


def prints(config):
    return {stage: fingerprint(config, stage, {}) for stage in STAGES}


def changed(before, after):
    return {stage for stage in STAGES if before[stage] != after[stage]}


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    return "other" if value is None else value + "x"


def read_by(config, key, stages=STAGES):
    """The stages that do not leave a key unread with the configuration's other values."""
    return {stage for stage in stages if not matches_prefix(key, kind_of(stage).unread_keys(config))}


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def switch_on(config, set_key, key):
    """Give the keys that switch a key on a value at which it counts."""
    for switch in KEYS[key].switches:
        set_key(config, switch, other(KEYS[switch].neutral))


def test_a_key_changes_exactly_the_stages_that_read_it(make_config, set_key):
    for key in leaf_keys():
        config = make_config()
        switch_on(config, set_key, key)
        before = prints(config)
        set_key(config, key, other(value_of(config, key)))
        readers = {stage for stage in read_by(config, key) if matches_prefix(key, stage_kinds()[stage].result_keys)}
        assert changed(before, prints(config)) == (readers if KEYS[key].effect == "result" else set()), key


def test_a_key_changes_a_benchmark_unless_it_is_a_name(make_config, set_key):
    for key in leaf_keys():
        config = make_config("stage=bench")
        switch_on(config, set_key, key)
        before = fingerprint(config, "bench", {})
        set_key(config, key, other(value_of(config, key)))
        evaluates = key.startswith(("evaluate.", "evaluate_reward."))  # which no benchmark does
        assert (fingerprint(config, "bench", {}) == before) == (KEYS[key].effect == "name" or evaluates), key


def test_whole_passes_count_the_same_however_they_are_written(make_config):
    written = [prints(make_config(f"ppo.epochs={passes}"))["ppo"] for passes in ("2", "2.0", "2.5")]
    assert written[0] == written[1] != written[2]


# What stages are called on users' disks. A fingerprint that is another one means that every such stage is trained again:
# give a new key a neutral value instead. Where values of conf/ change on purpose, so do these, and CHANGELOG.md says so.
DEMO = (  # what a model took by itself before recipes followed it
    "data=demo", "sft=demo", "reward=demo", "ppo=demo", "dpo=demo", "rollout/length@rollout=demo", "lora=none",
    "lora@critic_lora=same", "lora@reward_lora=same",
)  # fmt: skip
GOLDEN = {
    (): {"sft": "14b6e0994893", "reward": "aee8969b44f5", "ppo": "ab01d39f08eb", "dpo": "20c72a20e6fe"},
    ("model=opt-1.3b", "reward_model=opt-350m"): {
        "sft": "c83c31edc905",
        "reward": "b9f08238da00",
        "ppo": "448747c871d7",
        "dpo": "42b218a24fcd",
    },
    ("model=opt-1.3b", "reward_model=opt-350m", *DEMO): {
        "sft": "90041afa35e2",
        "reward": "edfb744f9029",
        "ppo": "ab01d39f08eb",
        "dpo": "20c72a20e6fe",
    },
    ("model=llama-tiny", "lora=r8", "ppo.ema=true", "ppo.kl_controller=adaptive"): {
        "sft": "971b02859075",
        "reward": "76b45905c207",
        "ppo": "0e3bf0c91a2c",
        "dpo": "5c90d943e3ba",
    },
}


@pytest.mark.parametrize("overrides", GOLDEN, ids=lambda overrides: ",".join(overrides) or "default")
def test_todays_stages_are_found_by_later_releases(make_config, overrides):
    found = {stage: digest[:12] for stage, digest in prints(make_config(*overrides)).items()}
    assert found == GOLDEN[overrides]


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.neutral is not ... and key.effect == "result"])
def test_a_key_at_its_neutral_value_is_left_out(make_config, set_key, key):
    config = set_key(make_config(), key, KEYS[key].neutral)
    stages = (*STAGES, "best_of_n", "evaluate", "evaluate_reward")
    readers = {stage for stage in read_by(config, key, stages) if key in result_keys(stage)}
    assert readers and not any(key in result_config(config, stage) for stage in stages)
    set_key(config, key, other(KEYS[key].neutral))
    assert {stage for stage in stages if key in result_config(config, stage)} == readers


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.switches])
def test_a_key_that_is_switched_off_is_left_out(make_config, set_key, key):
    config = make_config()
    before = prints(config)
    assert changed(before, prints(set_key(config, key, other(value_of(config, key))))) == set()


def test_a_release_with_one_more_key_finds_the_stages_of_the_one_before(make_config, monkeypatch):
    config = make_config()
    before = prints(config)
    monkeypatch.setitem(KEYS, "ppo.new_penalty", KEYS["ppo.length_penalty"])
    result_keys.cache_clear()
    try:
        config.ppo.new_penalty = 0.0
        assert prints(config) == before
        config.ppo.new_penalty = 0.5
        assert changed(before, prints(config)) == {"ppo"}
    finally:
        result_keys.cache_clear()


@pytest.mark.parametrize(
    ("key", "decides"),
    [
        ("hardware.gpus_per_node", True),
        ("hardware.gpu", True),
        ("zero.stage", True),
        ("reference_zero.offload_param", True),
        ("rollout.engine", True),
        ("rollout.gather", True),
        ("rollout.micro_batch_size", True),
        ("ppo.micro_batch_size", True),
        ("ppo.packing", True),
        ("ppo.offload_idle", True),
        ("ppo.gradient_checkpointing", True),
        ("ppo.critic", True),
        ("bench.what", True),
        ("launcher.threads", True),
        ("launcher.kind", False),
        ("launcher.partition", False),
        ("tracking.tensorboard", False),
        ("checkpoint.every_steps", False),
        ("sweep.trials", False),
        ("output_root", False),
        ("name", False),
        ("dry_run", False),
    ],
)
def test_what_decides_a_benchmark(make_config, set_key, key, decides):
    config = make_config("stage=bench")
    before = fingerprint(config, "bench", {})
    set_key(config, key, other(value_of(config, key)))
    assert (fingerprint(config, "bench", {}) != before) == decides


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("seed", {"sft", "reward", "ppo", "dpo"}),
        ("precision.dtype", {"sft", "reward", "ppo", "dpo"}),
        ("lora.rank", {"sft", "ppo", "dpo"}),
        ("reward_lora.rank", {"reward"}),
        ("critic_lora.rank", {"ppo"}),
        ("critic_lora.save_merged", set()),
        ("model.name", set()),
        ("reward_model.name", set()),
        ("model.gguf_file", {"sft"}),
        ("model.head_dim", {"sft"}),
        ("data.demo.label_noise", {"sft", "reward", "ppo", "dpo"}),
        ("model.hidden_size", {"sft"}),
        ("sft.batch_size", {"sft"}),
        ("reward_model.hidden_size", {"reward"}),
        ("reward.learning_rate", {"reward"}),
        ("ppo.kl_coef", {"ppo"}),
        ("dpo.beta", {"dpo"}),
        ("dpo.nll_coef", {"dpo"}),
        ("dpo.packing", set()),
        ("ppo.dropout", {"ppo"}),
        ("ppo.ptx.column", set()),  # while ppo.ptx_coef is 0
        ("ppo.ptx_coef", {"ppo"}),
        ("ppo.ema", {"ppo"}),
        ("ppo.max_nonfinite", set()),
        ("ppo.critic_gradient_checkpointing", set()),
        ("rollout.fixed_length", {"ppo", "dpo"}),
        ("rollout.temperature", {"ppo", "dpo"}),
        ("rollout.samples_per_prompt", {"ppo"}),  # an evaluation has one response to each prompt
        ("rollout.engine", set()),
        ("rollout.micro_batch_size", set()),
        ("ppo.micro_batch_size", set()),
        ("sft.gradient_checkpointing", set()),
        ("hardware.gpus_per_node", set()),
        ("zero.stage", set()),
        ("reward_zero.stage", set()),
        ("reward_zero.zero_quantized_weights", {"reward", "ppo", "dpo"}),  # they change numbers by more than rounding
        ("critic_zero.zero_quantized_gradients", {"ppo"}),
        ("tracking.wandb.project", set()),
        ("launcher.kind", set()),
        ("output_root", set()),
        ("name", set()),
    ],
)
def test_what_decides_which_result(make_config, set_key, key, stages):
    """The promises of the design, spelled out: the lists themselves could be wrong."""
    config = make_config()
    before = prints(config)
    assert changed(before, prints(set_key(config, key, other(value_of(config, key))))) == stages


def test_fingerprints_are_hexadecimal_and_differ_between_stages(make_config):
    found = prints(make_config())
    assert len(set(found.values())) == len(STAGES)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in found.values())


def test_inputs_and_their_roles_decide(make_config):
    config = make_config()
    found = [
        fingerprint(config, "ppo", inputs)
        for inputs in (
            {},
            {"actor": "a", "reward": "b"},
            {"actor": "c", "reward": "b"},
            {"actor": "a", "reward": "c"},
            {"actor": "b", "reward": "a"},
        )
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(config, "ppo", {"reward": "b", "actor": "a"}) == found[1]  # in whatever order


def test_a_new_schema_version_is_another_result(make_config, monkeypatch):
    before = prints(make_config())
    monkeypatch.setattr("rlhf.experiment.fingerprint.SCHEMA_VERSION", 10**6)
    assert changed(before, prints(make_config())) == set(STAGES)


def test_the_machine_matters_only_through_the_number_format(make_config):
    assert prints(make_config("hardware=v100-32g", "precision=fp32", "zero=2")) == prints(make_config())
    assert changed(prints(make_config("hardware=v100-32g", "precision=fp16")), prints(make_config())) == set(STAGES)


def test_models_and_files_count_by_what_they_hold(make_config, set_key, tmp_path):
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place, text in zip(places, ("same", "same", "other"), strict=True):
        place.mkdir()
        (place / "config.json").write_text(text)
    for key, stages in (("data.files.train", set(STAGES)), ("model.path", {"sft"}), ("reward_model.path", {"reward"}),
                        ("ppo.ptx.file", {"ppo"})):  # fmt: skip
        found = [prints(set_key(make_config("ppo.ptx_coef=1"), key, str(place))) for place in places]
        assert found[0] == found[1]
        assert changed(found[0], found[2]) == stages


def test_identity_of_nothing_and_of_a_hub_id():
    assert content_id(None) is None
    assert content_id("facebook/opt-125m") == "facebook/opt-125m"


def test_identity_of_a_directory_changes_with_its_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "model.safetensors"
    weights.write_bytes(b"abc")
    seen = {content_id(str(tmp_path))}
    assert content_id(str(tmp_path)) in seen
    for change in (
        lambda: weights.write_bytes(b"abd"),
        lambda: weights.write_bytes(b"abda"),
        lambda: weights.rename(weights.with_name("other.safetensors")),
        lambda: (tmp_path / "generation_config.json").write_text("{}"),
    ):
        change()
        found = content_id(str(tmp_path))
        assert found not in seen
        seen.add(found)


def test_identity_does_not_depend_on_where_a_model_is_or_when_it_was_written(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert content_id(str(tmp_path / "first")) == content_id(str(tmp_path / "second"))


@pytest.mark.parametrize("place", [0, 2**20 - 1, 2**20 + 5, 3 * 2**19 - 1])
def test_identity_of_a_file_of_up_to_two_mib_sees_every_byte(tmp_path, place):
    file = tmp_path / "model.safetensors"
    content = bytearray(3 * 2**19)
    file.write_bytes(content)
    before = content_id(str(tmp_path))
    content[place] = 1
    file.write_bytes(content)
    assert content_id(str(tmp_path)) != before


def test_identity_of_a_large_data_file_sees_every_record(tmp_path):
    """One label of a data set that is turned round in place: same size, same ends, other data."""
    file = tmp_path / "train.jsonl"
    content = bytearray(b"x" * (3 * 2**20))
    file.write_bytes(content)
    before = content_id(str(file))
    content[len(content) // 2] = ord("y")
    file.write_bytes(content)
    assert content_id(str(file)) != before


def test_identity_of_a_stage_is_its_fingerprint(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "result.json").write_text(json.dumps({"fingerprint": "f" * 64}))
    assert content_id(str(tmp_path)) == content_id(str(tmp_path / "model")) == "f" * 64


@pytest.mark.parametrize("result", ['{"accuracy": 0.9}', '{"fingerprint": "f"}'])
def test_a_data_file_beside_somebody_elses_result_counts_by_its_own_content(tmp_path, result):
    (tmp_path / "result.json").write_text(result)
    for name in ("train.jsonl", "heldout.jsonl"):
        (tmp_path / name).write_text(name)
    assert content_id(str(tmp_path / "train.jsonl")) != content_id(str(tmp_path / "heldout.jsonl"))
