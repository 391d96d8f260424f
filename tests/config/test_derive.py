import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rlhf.config.derive import batches, check, check_devices, max_sequence
from rlhf.config.errors import ConfigError
from rlhf.config.memory import activation_bytes_per_token, training_state_gib

STAGES = st.sampled_from(["sft", "reward", "ppo"])
SIZES = st.integers(1, 16)


def at_world(config, world):
    config.hardware.gpus_per_node = world
    return config


def suggestion(error):
    """The key and the number of `<key>=<value>: …; try <number>`."""
    match = re.match(r"([\w.]+)=.*; try (\d+)$", str(error))
    assert match, str(error)
    return match[1], int(match[2])


@given(STAGES, st.integers(1, 64), SIZES, SIZES)
def test_a_global_batch_is_micro_batches_times_accumulation_times_ranks(make_config, stage, world, micro, accumulation):
    config = at_world(make_config(), world)
    training = getattr(config, stage)
    training.batch_size, training.micro_batch_size = world * micro * accumulation, micro
    plan = batches(config, stage)
    assert (plan.ranks, plan.per_rank, plan.micro, plan.accumulation) == (world, micro * accumulation, micro, accumulation)
    training.micro_batch_size = None
    derived = batches(config, stage)
    assert derived.per_rank == plan.per_rank == derived.micro * derived.accumulation


@given(STAGES, st.integers(1, 64), st.integers(-3, 300))
def test_an_uneven_batch_comes_with_a_size_that_works(make_config, set_key, stage, world, size):
    config = set_key(at_world(make_config(), world), f"{stage}.batch_size", size)
    if size > 0 and size % world == 0:
        assert batches(config, stage).per_rank * world == size
        return
    with pytest.raises(ConfigError) as error:
        batches(config, stage)
    key, better = suggestion(error.value)
    assert key == f"{stage}.batch_size"
    assert abs(better - max(size, 0)) <= world
    assert batches(set_key(config, key, better), stage).per_rank * world == better


@pytest.mark.parametrize("world", [3, 5, 24, 64, 100])
def test_following_the_suggestions_ends_in_a_configuration_that_works(make_config, set_key, world):
    config = at_world(make_config(), world)
    for _ in range(5):
        try:
            check(config)
            return
        except ConfigError as error:
            set_key(config, *suggestion(error))
    pytest.fail("five suggestions were not enough")


@given(STAGES, SIZES, st.integers(-2, 20))
def test_a_micro_batch_must_divide_a_ranks_share(make_config, set_key, stage, per_rank, micro):
    config = set_key(at_world(make_config(), 2), f"{stage}.batch_size", 2 * per_rank)
    set_key(config, f"{stage}.micro_batch_size", micro)
    if micro >= 1 and per_rank % micro == 0:
        assert batches(config, stage).micro == micro
        return
    with pytest.raises(ConfigError, match=rf"^{stage}\.micro_batch_size={micro}: .*; try one of") as error:
        batches(config, stage)
    for better in map(int, re.findall(r"\d+", str(error.value).split("try one of")[1])):
        assert batches(set_key(config, f"{stage}.micro_batch_size", better), stage).micro == better


def room_bytes(config, stage):
    """Memory of a device that the stage's weights, gradients and optimiser leave."""
    models = {"sft": [config.model], "reward": [config.reward_model], "ppo": [config.model, config.reward_model]}[stage]
    state = training_state_gib(config, models, models if stage == "ppo" else [])
    return models, max(0.0, config.hardware.memory_gib - state) * 2**30


@pytest.fixture(scope="module")
def shapes(make_config):
    """Three sizes of model, by name."""
    return {name: make_config(f"model={name}").model for name in ("opt-125m", "opt-1.3b", "opt-13b")}


NAMES = st.sampled_from(["opt-125m", "opt-1.3b", "opt-13b"])


@given(
    STAGES, NAMES, NAMES, st.sampled_from([24, 40, 80]), st.sampled_from([1, 8]), st.sampled_from([0, 2, 3]),
    st.integers(1, 64), st.integers(8, 900), st.booleans(),
)  # fmt: skip
@example("ppo", "opt-125m", "opt-1.3b", 40, 1, 0, 57, 72, False)  # the critic is the larger
def test_a_derived_micro_batch_divides_and_fits(
    make_config, set_key, shapes, stage, model, reward, memory, world, zero, per_rank, tokens, checkpointing
):
    """Every model that the stage trains fits its activations, whichever of actor and critic is the larger."""
    config = at_world(make_config(), world)
    config.model, config.reward_model = shapes[model], shapes[reward]
    config.hardware.memory_gib, config.zero.stage, config.precision.dtype = memory, zero, "bf16"
    config.data.max_prompt_tokens = config.data.max_response_tokens = tokens
    set_key(config, f"{stage}.batch_size", per_rank * world)
    set_key(config, f"{stage}.gradient_checkpointing", checkpointing)
    micro = batches(config, stage).micro
    assert per_rank % micro == 0
    models, room = room_bytes(config, stage)
    rows = micro * (2 if stage == "reward" else 1)
    for shape in models:
        needed = rows * max_sequence(config) * activation_bytes_per_token(shape, "bf16", checkpointing)
        assert micro == 1 or needed <= room, f"{shape.name} needs {needed / 2**30:.0f} of {room / 2**30:.0f} GiB"


def test_a_grouped_reward_micro_batch_counts_all_answers_of_a_prompt(make_config, shapes):
    """An element of the demo data holds answers_per_prompt answers of each round, not two."""
    config = make_config("reward.batch_size=64")
    config.reward_model, config.hardware.memory_gib, config.precision.dtype = shapes["opt-125m"], 48, "bf16"
    rows = config.data.demo.answers_per_prompt * config.data.demo.rounds
    config.data.max_prompt_tokens = config.data.max_response_tokens = 512
    micro = batches(config, "reward").micro
    _, room = room_bytes(config, "reward")
    needed = micro * rows * max_sequence(config) * activation_bytes_per_token(config.reward_model, "bf16", False)
    assert micro == 1 or needed <= room, f"{micro} elements need {needed / 2**30:.0f} of {room / 2**30:.0f} GiB"


def test_more_memory_never_means_a_smaller_micro_batch(make_config, shapes):
    config = make_config("sft.batch_size=64")
    config.model, config.precision.dtype = shapes["opt-1.3b"], "bf16"
    sizes = []
    for config.hardware.memory_gib in (8, 32, 40, 48, 80, 400):
        sizes.append(batches(config, "sft").micro)
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] > 8


def test_state_memory_of_a_hand_case(make_config):
    """1.3e9 parameters in mixed precision on 8 ranks: 16 bytes each, less what each ZeRO stage shards."""
    config = at_world(make_config(), 8)
    config.precision.dtype = "bf16"
    config.model.parameters = 1_300_000_000
    expected = {"0": 16.0, "1": 4 + 12 / 8, "2": 2 + 2 / 8 + 12 / 8, "3": 16 / 8}
    for config.zero.stage, size in ((int(stage), size) for stage, size in expected.items()):
        assert training_state_gib(config, [config.model], []) == pytest.approx(1.3e9 * size / 2**30)
    config.zero.offload_optimizer = True
    assert training_state_gib(config, [config.model], []) == pytest.approx(1.3e9 * 4 / 8 / 2**30)
    assert training_state_gib(config, [], [config.model]) == pytest.approx(1.3e9 * 2 / 8 / 2**30)
    config.precision.dtype, config.zero.stage, config.zero.offload_optimizer = "fp32", 0, False
    assert training_state_gib(config, [config.model], []) == pytest.approx(1.3e9 * 16 / 2**30)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        # names
        ({"stages": ["sft", "dpo"]}, "stages"),
        ({"stages": []}, "stages"),
        ({"model.family": "gpt"}, "model.family"),
        ({"reward_model.family": "gpt"}, "reward_model.family"),
        ({"precision.dtype": "fp8"}, "precision.dtype"),
        ({"data.source": "web"}, "data.source"),
        ({"data.truncation": "right"}, "data.truncation"),
        ({"sft.schedule": "step"}, "sft.schedule"),
        ({"ppo.schedule": "step"}, "ppo.schedule"),
        ({"sft.loss_on": "prompt"}, "sft.loss_on"),
        ({"reward.normalize": "mean"}, "reward.normalize"),
        ({"ppo.kl_controller": "pid"}, "ppo.kl_controller"),
        ({"ppo.eos_penalty_mode": "add"}, "ppo.eos_penalty_mode"),
        ({"rollout.engine": "warp"}, "rollout.engine"),
        ({"launcher.kind": "k8s"}, "launcher.kind"),
        ({"tracking.wandb.mode": "sometimes"}, "tracking.wandb.mode"),
        ({"data.prompt_format": "Human:"}, "data.prompt_format"),
        # hardware
        ({"hardware.device": "tpu"}, "hardware.device"),
        ({"hardware.nodes": 0}, "hardware.nodes"),
        ({"precision.dtype": "fp16"}, "precision.dtype"),  # on the CPU
        ({"zero.stage": 4}, "zero.stage"),
        ({"zero.offload_optimizer": True}, "zero.offload_optimizer"),  # at stage 0
        ({"zero.stage": 2, "zero.offload_parameters": True}, "zero.offload_parameters"),
        ({"launcher.kind": "inline", "hardware.gpus_per_node": 2}, "launcher.kind"),
        # ranges
        ({"seed": -1}, "seed"),
        ({"lora.rank": -1}, "lora.rank"),
        ({"sft.dropout": 1.5}, "sft.dropout"),
        ({"data.demo.label_noise": -0.1}, "data.demo.label_noise"),
        ({"data.demo.answers_per_prompt": 1}, "data.demo.answers_per_prompt"),
        ({"data.demo.rounds": 0}, "data.demo.rounds"),
        ({"data.demo.heldout_prompts": 360}, "data.demo.heldout_prompts"),  # of 360 questions
        ({"sft.epochs": 0}, "sft.epochs"),
        ({"reward.learning_rate": -1e-3}, "reward.learning_rate"),
        ({"ppo.max_steps": 0}, "ppo.max_steps"),
        ({"ppo.eval_every": 0}, "ppo.eval_every"),
        ({"sft.max_grad_norm": 0.0}, "sft.max_grad_norm"),
        ({"sft.betas": [0.9]}, "sft.betas"),
        ({"ppo.betas": [0.9, 1.0]}, "ppo.betas"),
        ({"ppo.gamma": 1.01}, "ppo.gamma"),
        ({"ppo.gamma": float("nan")}, "ppo.gamma"),
        ({"ppo.gae_lambda": -0.1}, "ppo.gae_lambda"),
        ({"ppo.kl_coef": -0.1}, "ppo.kl_coef"),
        ({"ppo.update_epochs": 0}, "ppo.update_epochs"),
        ({"ppo.clip_range": 0.0}, "ppo.clip_range"),
        ({"ppo.log_ratio_clip": 0.0}, "ppo.log_ratio_clip"),
        ({"ppo.reward_clip": 0.0}, "ppo.reward_clip"),
        # lengths
        ({"rollout.temperature": 0.0}, "rollout.temperature"),
        ({"rollout.top_p": 0.0}, "rollout.top_p"),
        ({"rollout.top_p": 1.1}, "rollout.top_p"),
        ({"rollout.top_k": -1}, "rollout.top_k"),
        ({"rollout.max_new_tokens": 0}, "rollout.max_new_tokens"),
        ({"rollout.min_new_tokens": 49}, "rollout.min_new_tokens"),
        ({"data.max_prompt_tokens": 0}, "data.max_prompt_tokens"),
        ({"model.positions": 127}, "model.positions"),  # 64 + 64 are needed
        ({"reward_model.positions": 127}, "reward_model.positions"),
        ({"rollout.max_new_tokens": 200}, "model.positions"),
        ({"data.tokenizer_vocabulary": 200}, "data.tokenizer_vocabulary"),
        ({"data.tokenizer_vocabulary": 769}, "data.tokenizer_vocabulary"),
        # batches
        ({"hardware.gpus_per_node": 3}, "sft.batch_size"),
        ({"hardware.gpus_per_node": 16}, "reward.batch_size"),  # 8 comparisons
        ({"sft.micro_batch_size": 3}, "sft.micro_batch_size"),
        ({"ppo.rollout_batch_size": 96}, "ppo.rollout_batch_size"),
        ({"rollout.micro_batch_size": 48}, "rollout.micro_batch_size"),
        # inputs
        ({"data.source": "files"}, "data.files.train"),
        ({"data.source": "files", "data.files.train": __file__, "data.files.heldout": "no.jsonl"}, "data.files.heldout"),
        ({"data.source": "hub"}, "data.hub.name"),
        ({"model.path": "/no/such/model"}, "model.path"),
        ({"ppo.actor": "outputs/stages/sft-0"}, "ppo.actor"),
        ({"ppo.reward": "~/no-such-model"}, "ppo.reward"),
        ({"output_root": f"{__file__}/outputs"}, "output_root"),  # a file is in the way
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_its_key(make_config, set_key, changes, key):
    config = make_config()
    check(config)
    for name, value in changes.items():
        set_key(config, name, value)
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}=") as error:
        check(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sft.eps", -1.0),
        ("sft.weight_decay", -0.1),
        ("sft.learning_rate", float("inf")),
        ("model.heads", 5),  # 64 wide
        ("launcher.threads", -1),
        ("launcher.lock_timeout_s", -1.0),
        ("data.prompt_format", "{prompt} {name}"),
        ("data.prompt_format", "{prompt} {"),
    ],
)
def test_what_would_fail_minutes_later_is_refused_at_once(make_config, set_key, key, value):
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}="):
        check(set_key(make_config(), key, value))


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout.min_new_tokens": 48, "ppo.eos_penalty": None},  # fixed length, row 15
        {"ppo.gamma": 0.0},
        {"ppo.kl_coef": 0.0},
        {"ppo.reward_clip": 5.0},  # row 12
        {"model.positions": 128, "reward_model.positions": 128},
        {"data.tokenizer_vocabulary": 768},
        {"ppo.rollout_batch_size": 128},
        {"rollout.micro_batch_size": 32},
        {"hardware.gpus_per_node": 4},
        {"zero.stage": 3, "zero.offload_optimizer": True, "zero.offload_parameters": True},
        {"model.path": "facebook/opt-125m", "reward_model.path": "facebook/opt-125m"},
        {"stages": ["sft"], "reward.batch_size": 7, "hardware.gpus_per_node": 2},  # only stages that run are checked
        {"data.source": "files", "data.files.train": __file__, "data.files.heldout": __file__},
    ],
)
def test_what_can_work_is_let_through(make_config, set_key, changes):
    config = make_config()
    for name, value in changes.items():
        set_key(config, name, value)
    check(config)


def test_bf16_on_a_v100_is_refused_with_what_it_has(make_config):
    config = make_config("hardware=v100-32g")
    assert config.precision.dtype == "fp16"
    check(config)
    config.precision.dtype = "bf16"
    with pytest.raises(ConfigError, match=r"^precision\.dtype=bf16: V100.*; try precision=fp16$"):
        check(config)


def test_a_new_output_root_may_be_made(make_config, set_key, tmp_path):
    check(set_key(make_config(), "output_root", str(tmp_path / "a" / "b")))
    assert not (tmp_path / "a").exists()


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_rollout_that_is_no_multiple_comes_with_one_that_is(make_config, rollout, batch):
    config = make_config()
    config.ppo.rollout_batch_size, config.ppo.batch_size = rollout, batch
    assume(rollout % batch)
    with pytest.raises(ConfigError) as error:
        check(config)
    key, config.ppo.rollout_batch_size = suggestion(error.value)
    assert key == "ppo.rollout_batch_size"
    check(config)


def test_devices_are_counted_before_anything_is_launched(make_config, monkeypatch):
    config = at_world(make_config(), 8)
    config.hardware.device = "cuda"
    for visible, fix in (("", "try hardware=cpu"), ("0,1", "set hardware.gpus_per_node=2")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(ConfigError, match=r"^hardware\.gpus_per_node=8: ") as error:
            check_devices(config)
        assert str(error.value).endswith(fix)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    check_devices(config)
    config.hardware.nodes = 2
    with pytest.raises(ConfigError, match=r"^hardware\.nodes=2: "):
        check_devices(config)


def test_checking_writes_nothing(make_config, set_key, tmp_path):
    check(set_key(make_config(), "output_root", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
