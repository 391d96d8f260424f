import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rlhf.catalog.role import Role
from rlhf.config.checks import check, check_devices
from rlhf.config.derive import roles
from rlhf.config.errors import ConfigError
from rlhf.config.schema import LORAS, ZEROS
from rlhf.planner.batches import answers_per_pass, batches, fits_device
from rlhf.planner.memory import GIB, activation_bytes_per_token, adapter_parameters, state_bytes

STAGES = st.sampled_from(["sft", "reward", "ppo"])
SIZES = st.integers(1, 16)


def state_gib(role, config):
    """Weights, gradients and optimiser state of a role on a device, in GiB."""
    return sum(state_bytes(role, config).values()) / GIB


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
            for problem in error.problems:
                set_key(config, *suggestion(problem))
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


def trained(config, stage):
    """The models that the stage trains, each with whether its activations are recomputed."""
    if stage != "ppo":
        model = config.model if stage == "sft" else config.reward_model
        return [(model, getattr(config, stage).gradient_checkpointing)]
    critic = config.model if config.ppo.critic == "actor" else config.reward_model
    return [(config.model, config.ppo.gradient_checkpointing), (critic, config.ppo.critic_gradient_checkpointing)]


def held(config, stage):
    """The models that the stage holds, spelled out."""
    actor, judge = Role(config.model, config.zero, config.lora), Role(config.reward_model, config.reward_zero, None)
    if stage == "sft":
        return [actor]
    if stage == "reward":
        return [Role(config.reward_model, config.reward_zero, config.reward_lora)]
    from_actor = config.ppo.critic == "actor"
    models = [actor, Role(config.model if from_actor else config.reward_model, config.critic_zero, config.critic_lora)]
    if config.lora.rank == 0 or not config.lora.only:
        models.append(Role(config.model, config.reference_zero, None))
    if config.ppo.critic != "reward" or config.critic_lora.rank == 0 or not config.critic_lora.only:
        models.append(judge)
    return models


def room_bytes(config, stage):
    """Memory of a device that the stage's weights, gradients and optimiser leave."""
    state = sum(state_gib(role, config) for role in held(config, stage))
    return max(0.0, config.hardware.memory_gib - state) * 2**30


def set_all(config, names, key, value):
    for name in names:
        setattr(getattr(config, name), key, value)


@pytest.fixture(scope="module")
def shapes(make_config):
    """Three sizes of model, by name."""
    return {name: make_config(f"model={name}").model for name in ("opt-125m", "opt-1.3b", "opt-13b")}


NAMES = st.sampled_from(["opt-125m", "opt-1.3b", "opt-13b"])


@given(
    STAGES, NAMES, NAMES, st.sampled_from([24, 40, 80]), st.sampled_from([1, 8]), st.sampled_from([0, 2, 3]),
    st.integers(1, 64), st.integers(8, 900), st.booleans(), st.booleans(), st.sampled_from([0, 0, 64]),
    st.sampled_from(["reward", "actor"]),
)  # fmt: skip
@example("ppo", "opt-125m", "opt-1.3b", 40, 1, 0, 57, 72, False, False, 0, "reward")  # the critic is the larger
@example("ppo", "opt-125m", "opt-1.3b", 40, 1, 0, 64, 400, True, False, 0, "reward")  # and is not recomputed
def test_a_derived_micro_batch_divides_and_fits(
    make_config, set_key, shapes, stage, model, reward, memory, world, zero, per_rank, tokens, checkpointing,
    critic_checkpointing, rank, critic,
):  # fmt: skip
    """Every model that the stage trains fits its activations, whichever of actor and critic is the larger."""
    config = at_world(make_config(), world)
    config.model, config.reward_model, config.ppo.critic = shapes[model], shapes[reward], critic
    config.hardware.memory_gib, config.precision.dtype = memory, "bf16"
    set_all(config, ZEROS, "stage", zero)
    set_all(config, LORAS, "rank", rank)
    config.data.max_prompt_tokens = config.data.max_response_tokens = tokens
    set_key(config, f"{stage}.batch_size", per_rank * world)
    set_key(config, f"{stage}.gradient_checkpointing", checkpointing)
    config.ppo.critic_gradient_checkpointing = critic_checkpointing
    micro = batches(config, stage).micro
    assert per_rank % micro == 0
    room = room_bytes(config, stage)
    rows = micro * (2 if stage == "reward" else 1)
    new = config.rollout.max_new_tokens
    length = config.data.max_prompt_tokens + (new if stage == "ppo" else config.data.max_response_tokens)
    for shape, recomputed in trained(config, stage):
        needed = rows * length * activation_bytes_per_token(shape, "bf16", recomputed)
        assert micro == 1 or needed <= room, f"{shape.name} needs {needed / 2**30:.0f} of {room / 2**30:.0f} GiB"


@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize("ranks", [(0, 0), (8, 0), (0, 8), (8, 8)])
@pytest.mark.parametrize("critic", ["reward", "actor", "org/another-model"])
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_stage_holds_the_models_that_it_loads(make_config, stage, critic, ranks, only):
    """With adapters alone the reference is the actor, and the reward model the critic that started from it."""
    config = make_config("zero@critic_zero='1'", "zero@reference_zero='2'", "zero@reward_zero='3'")
    config.ppo.critic, (config.lora.rank, config.critic_lora.rank) = critic, ranks
    set_all(config, LORAS, "only", only)
    assert roles(config, stage) == held(config, stage)


@pytest.mark.parametrize("memory", [4, 6, 24, 80])
@pytest.mark.parametrize("data", ["demo", "files", "hub"])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_pass_of_the_reward_stage_reads_no_more_answers_than_fit(make_config, shapes, data, grouped, memory):
    """However many answers the prompts of the data have, which nothing but the data can tell."""
    config = make_config(f"data={data}", "reward.batch_size=64", f"reward.grouped={str(grouped).lower()}")
    config.reward_model, config.hardware.memory_gib, config.precision.dtype = shapes["opt-125m"], memory, "bf16"
    config.data.max_prompt_tokens = config.data.max_response_tokens = 512
    answers, room = answers_per_pass(config, "reward"), room_bytes(config, "reward")
    needed = answers * 1024 * activation_bytes_per_token(config.reward_model, "bf16", False)
    assert answers == 2 or needed <= room, f"{answers} answers need {needed / 2**30:.0f} of {room / 2**30:.0f} GiB"
    assert answers == 2 or fits_device(config, "reward", answers // 2)
    assert not fits_device(config, "reward", answers)  # and no fewer than need be
    config.reward.micro_batch_size = 4
    assert answers_per_pass(config, "reward") == 8  # comparisons of two answers


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
    """1.3e9 parameters in mixed precision on 8 ranks: 16 bytes each, less what each ZeRO stage shards; 0 is run as 1."""
    config = at_world(make_config(), 8)
    config.precision.dtype = "bf16"
    config.model.num_parameters = 1_300_000_000
    learns, reads = Role(config.model, config.zero, config.lora), Role(config.model, config.zero, None)
    expected = {"0": 4 + 12 / 8, "1": 4 + 12 / 8, "2": 2 + 2 / 8 + 12 / 8, "3": 16 / 8}
    for config.zero.stage, size in ((int(stage), size) for stage, size in expected.items()):
        assert state_gib(learns, config) == pytest.approx(1.3e9 * size / 2**30)
    config.zero.offload_optimizer = True
    assert state_gib(learns, config) == pytest.approx(1.3e9 * 2 / 8 / 2**30)  # gradients go to the host too
    assert state_gib(reads, config) == pytest.approx(1.3e9 * 2 / 8 / 2**30)
    config.zero.offload_param = True
    assert state_gib(learns, config) == 0
    assert state_gib(reads, config) == 0
    # fp32: weight, gradient and two moments; ZeRO keeps a master weight beside them.
    config.precision.dtype, config.zero.offload_optimizer, config.zero.offload_param = "fp32", False, False
    for config.zero.stage, size in ((0, 16), (1, 8 + 12 / 8), (2, 4 + 4 / 8 + 12 / 8), (3, 20 / 8)):
        assert state_gib(learns, config) == pytest.approx(1.3e9 * size / 2**30)
    config.zero.stage = 0
    assert state_gib(reads, config) == pytest.approx(1.3e9 * 4 / 2**30)


def test_state_memory_of_adapters_of_a_hand_case(make_config):
    """Adapters of rank 8 on the matrices of an OPT of 2 layers, width 64 and 256 in between: 4 of 64 x 64 and 2 of 64 x 256
    in each; and on those of a Llama, which has 3 of the latter, and half as many keys."""
    config = make_config("model=opt-tiny", "lora=r8", "precision=bf16")
    adapters = 8 * 2 * (4 * (64 + 64) + 2 * (64 + 256))
    assert adapter_parameters(config.model, 8) == adapters
    learns, whole = Role(config.model, config.zero, config.lora), config.model.num_parameters + adapters
    assert state_gib(learns, config) == pytest.approx((2 * whole + 14 * adapters) / 2**30)
    config.lora.only = False
    assert state_gib(learns, config) == pytest.approx(16 * whole / 2**30)
    llama = make_config("model=llama-tiny", "model.num_key_value_heads=2", "model.intermediate_size=200").model
    assert adapter_parameters(llama, 1) == 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 200))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        # names
        ({"stages": ["sft", "bandit"]}, "stages"),
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
        ({"zero.stage": 4}, "zero.stage"),
        ({"zero.offload_optimizer": True}, "zero.offload_optimizer"),  # at stage 0
        ({"zero.stage": 2, "zero.offload_param": True}, "zero.offload_param"),
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
        ({"model.max_position_embeddings": 127}, "model.max_position_embeddings"),  # 64 + 64 are needed
        ({"reward_model.max_position_embeddings": 127}, "reward_model.max_position_embeddings"),
        ({"rollout.max_new_tokens": 200}, "model.max_position_embeddings"),
        ({"data.tokenizer_vocab_size": 200}, "data.tokenizer_vocab_size"),
        ({"data.tokenizer_vocab_size": 769}, "data.tokenizer_vocab_size"),
        # batches
        ({"hardware.gpus_per_node": 3}, "sft.batch_size"),
        ({"hardware.gpus_per_node": 16}, "reward.batch_size"),  # 8 comparisons
        ({"sft.micro_batch_size": 3}, "sft.micro_batch_size"),
        ({"ppo.rollout_batch_size": 96}, "ppo.rollout_batch_size"),
        ({"rollout.micro_batch_size": 48}, "rollout.micro_batch_size"),
        ({"rollout.samples_per_prompt": 48}, "rollout.samples_per_prompt"),
        ({"rollout.stop": ["Human:", ""]}, "rollout.stop"),
        ({"rollout.stop": ["."], "rollout.fixed_length": True, "ppo.eos_penalty": None}, "rollout.stop"),
        ({"rollout.do_sample": False, "rollout.top_k": 4}, "rollout.top_k"),
        ({"rollout.do_sample": False, "rollout.top_p": 0.5}, "rollout.top_p"),
        ({"rollout.do_sample": False, "rollout.samples_per_prompt": 2}, "rollout.samples_per_prompt"),
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
    with pytest.raises(ConfigError) as error:
        check(config)
    assert key in {line.partition("=")[0] for line in str(error.value).splitlines()}


FAMILIES = "opt, bloom, gpt_neox, gptj, gpt_neo, gpt2, codegen, llama, qwen2, qwen3, mistral, gemma2"
FORMATS = "give a .jsonl, .json, .csv, .parquet or .txt file"
PLACE = "give a directory that holds config.json, or a hub id"


def per_role(roles, *cases):
    """The same cases for each role, `{}` standing for its name."""
    fill = lambda text, role: text.replace("{}", role) if isinstance(text, str) else text  # noqa: E731
    return [
        ({fill(name, role): value for name, value in changes.items()}, *(fill(text, role) for text in rest))
        for changes, *rest in cases
        for role in roles
    ]


@pytest.mark.parametrize(
    ("changes", "key", "value", "fix"),
    [
        # names
        ({"model.family": "gpt5"}, "model.family", "gpt5", FAMILIES),
        ({"reward_model.family": "other"}, "reward_model.family", "other", FAMILIES),
        ({"model.num_hidden_layers": 0}, "model.path", "null", "give a directory or hub id"),  # model=local without a path
        ({"reward.normalize": "mean"}, "reward.normalize", "mean", "choose one of bias, standard, none"),
        ({"ppo.ptx.source": "web"}, "ppo.ptx.source", "web", "choose one of demonstrations, file, hub"),
        ({"rollout.engine": "warp"}, "rollout.engine", "warp", "choose one of hf"),
        # how each role is sharded
        *per_role(
            ZEROS,
            ({"{}.stage": 4}, "{}.stage", "4", "choose one of 0, 1, 2, 3"),
            ({"{}.reduce_bucket_size": 0}, "{}.reduce_bucket_size", "0", "at least 1"),
            ({"{}.stage3_param_persistence_threshold": -1}, "{}.stage3_param_persistence_threshold", "-1", "at least 0"),
            ({"{}.stage3_max_live_parameters": 0}, "{}.stage3_max_live_parameters", "0", "at least 1"),
            ({"{}.stage": 2, "{}.offload_param": True}, "{}.offload_param", "True", "{}=3-offload"),
            ({"{}.offload_optimizer": True}, "{}.offload_optimizer", "True", "{}=2-offload"),  # at stage 0
            ({"{}.stage": 2, "{}.zero_quantized_weights": True}, "{}.stage", "2", "{}=plusplus"),
            ({"{}.stage": 1, "{}.zero_quantized_gradients": True}, "{}.stage", "1", "{}=plusplus"),
            ({"{}.zero_hpz_partition_size": 2}, "{}.stage", "0", "{}=plusplus"),
            ({"{}.stage": 3, "{}.zero_quantized_weights": True}, "{}.zero_quantized_weights", "True",
             "{}.zero_quantized_weights=false"),
            ({"{}.stage": 3, "{}.zero_quantized_gradients": True}, "{}.zero_quantized_gradients", "True",
             "{}.zero_quantized_gradients=false"),
            ({"{}.zero_hpz_partition_size": 0}, "{}.zero_hpz_partition_size", "0", "hardware.gpus_per_node"),
            ({"{}.stage": 3, "{}.zero_hpz_partition_size": 3, "hardware.gpus_per_node": 8}, "{}.zero_hpz_partition_size",
             "3",
             "hardware.gpus_per_node"),
        ),
        ({"zero.stage": 3, "zero.zero_hpz_partition_size": 2, "critic_zero.stage": 3,
         "critic_zero.zero_hpz_partition_size": 4,
          "hardware.gpus_per_node": 8}, "zero.zero_hpz_partition_size", "2", "give all the same"),
        # adapters of each role
        *per_role(
            LORAS,
            ({"{}.rank": -1}, "{}.rank", "-1", "at least 0"),
            ({"{}.dropout": 1.5}, "{}.dropout", "1.5", "below 1"),
            ({"{}.learning_rate": -1e-3}, "{}.learning_rate", "-0.001", "at least 0"),
            ({"{}.rank": 8}, "{}.alpha", "0", "try 16"),  # as the option none has it
            ({"{}.target_modules": "q_proj"}, "{}.target_modules", "q_proj", "{}.target_modules=[q_proj,v_proj]"),
            ({"{}.target_modules": []}, "{}.target_modules", "[]", "give auto or a list"),
            ({"{}.target_modules": [1]}, "{}.target_modules", "[1]", "give auto or a list"),
            ({"{}.target_modules": None}, "{}.target_modules", "None", "give auto or a list"),
            ({"{}.rank": 8, "{}.alpha": 16, "{}.only": False, "{}.save_merged": False}, "{}.save_merged", "False",
             "set it true"),
        ),
        *per_role(
            ("lora", "reward_lora"),
            ({"{}.rank": 8, "{}.alpha": 16, "{}.save_merged": False}, "{}.save_merged", "False", "start from a model.path"),
        ),
        # PPO's by themselves, on top of those of the stage that it starts from
        ({"lora.rank": 8, "lora.alpha": 16, "lora.save_merged": False, "model.path": "org/m", "ppo.critic": "actor"},
         "lora.save_merged", "False", "set it true"),
        ({f"{key}.{name}": value for key in ("reward_lora", "critic_lora")
          for name, value in (("rank", 8), ("alpha", 16), ("save_merged", False))}
         | {"reward_model.path": "org/m", "model.path": "org/m", "reward.normalize": "none"},
         "critic_lora.save_merged", "False", "set it true"),
        # shapes with random weights
        *per_role(
            ("model", "reward_model"),
            ({"{}.num_attention_heads": 0}, "{}.num_attention_heads", "0", "change one"),
            ({"{}.num_attention_heads": 5}, "{}.num_attention_heads", "5", "change one"),  # 64 wide
            ({"{}.num_key_value_heads": 0}, "{}.num_key_value_heads", "0", "change one"),
            ({"{}.num_key_value_heads": 3}, "{}.num_key_value_heads", "3", "change one"),  # of 4 heads
            ({"{}.head_dim": 32}, "{}.head_dim", "32", "set {}.head_dim=16"),
            ({"{}.family": "gpt_neo", "{}.num_hidden_layers": 3}, "{}.num_hidden_layers", "3", "give an even number"),
            ({"{}.family": "codegen", "{}.num_attention_heads": 2, "{}.num_key_value_heads": 2, "{}.head_dim": 32},
             "{}.num_attention_heads", "2", "change it"),
            ({"{}.gguf_file": "a.gguf"}, "{}.gguf_file", "a.gguf", "give {}.path too"),
            ({"{}.max_position_embeddings": 127}, "{}.max_position_embeddings", "127", "lower data.max_prompt_tokens=64"),
        ),
        # PPO
        ({"ppo.dropout": 1.5}, "ppo.dropout", "1.5", "below 1"),
        ({"ppo.dropout": 0.1}, "ppo.dropout", "0.1", "set ppo.ratio_tolerance too"),
        ({"ppo.critic_dropout": -0.1}, "ppo.critic_dropout", "-0.1", "at least 0"),
        ({"ppo.ratio_tolerance": 0.0}, "ppo.ratio_tolerance", "0.0", "above 0"),
        ({"ppo.critic_weight_decay": -1.0}, "ppo.critic_weight_decay", "-1.0", "at least 0"),
        ({"ppo.length_penalty": float("nan")}, "ppo.length_penalty", "nan", "give a number"),
        ({"ppo.ptx_coef": -1.0}, "ppo.ptx_coef", "-1.0", "at least 0"),
        ({"ppo.ptx_coef": 1.0, "ppo.ptx.source": "file"}, "ppo.ptx.file", "None", FORMATS),
        ({"ppo.ptx_coef": 1.0, "ppo.ptx.source": "file", "ppo.ptx.file": "no.txt"}, "ppo.ptx.file", "no.txt", FORMATS),
        ({"ppo.ptx_coef": 1.0, "ppo.ptx.source": "hub"}, "ppo.ptx.hub", "null", "ppo.ptx.hub=NAME"),
        ({"ppo.ema_decay": 1.1}, "ppo.ema_decay", "1.1", "below 1"),
        ({"ppo.ema_start": -1}, "ppo.ema_start", "-1", "at least 0"),
        ({"ppo.ema_interval": 0}, "ppo.ema_interval", "0", "at least 1"),
        ({"ppo.max_nonfinite": 0}, "ppo.max_nonfinite", "0", "at least 1"),
        ({"sft.max_nonfinite": 0}, "sft.max_nonfinite", "0", "at least 1"),
        ({"reward.max_nonfinite": -1}, "reward.max_nonfinite", "-1", "at least 1"),
        ({"ppo.critic": "/no/such/model"}, "ppo.critic", "/no/such/model", PLACE),
        ({"ppo.critic": "./no-such-model"}, "ppo.critic", "./no-such-model", PLACE),
        ({"model.path": "org/model"}, "ppo.critic", "reward", "try ppo.critic=actor or reward_model=opt-tiny"),
        ({"reward_model.path": "org/model"}, "ppo.critic", "reward", "try ppo.critic=actor"),
        ({"ppo.offload_idle": True}, "ppo.offload_idle", "True", "choose hardware with a GPU"),
        *per_role(
            ("critic_zero", "reference_zero", "reward_zero"),
            ({"ppo.offload_idle": True, "hardware.device": "cuda", "{}.stage": 3, "{}.offload_param": True},
             "ppo.offload_idle", "True", "choose one of the two"),
            ({"ppo.offload_idle": True, "hardware.device": "cuda", "hardware.gpus_per_node": 4, "{}.stage": 3,
              "{}.zero_hpz_partition_size": 2}, "ppo.offload_idle", "True", "choose one of the two"),
        ),
        ({"rollout.fixed_length": True}, "ppo.eos_penalty", "-1.0", "set ppo.eos_penalty=null"),
        ({"rollout.min_new_tokens": 48}, "ppo.eos_penalty", "-1.0", "set ppo.eos_penalty=null"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_with_key_value_and_fix(make_config, set_key, changes, key, value, fix):
    config = make_config()
    for name, value_of_key in changes.items():
        set_key(config, name, value_of_key)
    with pytest.raises(ConfigError) as error:
        check(config)
    (line,) = (line for line in str(error.value).splitlines() if line.startswith(f"{key}={value}: "))
    assert fix in line.split("; ", 1)[1]


def test_what_is_suggested_for_a_role_is_an_option_that_works(make_config):
    """`zero@critic_zero=2-offload` and the like compose, and pass where the same keys did not."""
    for option in ("2-offload", "3-offload", "plusplus"):
        ranks = ("hardware.gpus_per_node=2", "launcher=local")
        check(make_config(*(f"zero@{role}={option}" for role in ZEROS[1:]), f"zero={option}", *ranks))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sft.eps", -1.0),
        ("sft.weight_decay", -0.1),
        ("sft.learning_rate", float("inf")),
        ("model.num_attention_heads", 5),  # 64 wide
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
        {"model.max_position_embeddings": 128, "reward_model.max_position_embeddings": 128},
        {"data.tokenizer_vocab_size": 768},
        {"ppo.rollout_batch_size": 128},
        {"rollout.micro_batch_size": 32},
        {"hardware.gpus_per_node": 4},
        {"zero.stage": 3, "zero.offload_optimizer": True, "zero.offload_param": True},
        {"model.path": "facebook/opt-125m", "reward_model.path": "facebook/opt-125m"},
        {"precision.dtype": "fp16"},  # DeepSpeed knows whether this CPU can
        {"critic_zero.stage": 3, "reference_zero.stage": 2, "reward_zero.stage": 1},
        {"zero.stage": 3, "zero.zero_hpz_partition_size": 2, "hardware.gpus_per_node": 4},  # others have none
        {
            "ppo.offload_idle": True,
            "hardware.device": "cuda",
            "critic_zero.stage": 2,
            "critic_zero.offload_optimizer": True,
        },
        {"ppo.offload_idle": True, "hardware.device": "cuda", "zero.stage": 3, "zero.offload_param": True},
        {
            "zero.stage": 3,
            "zero.zero_quantized_weights": True,
            "zero.zero_quantized_gradients": True,
            "hardware.device": "cuda",
        },
        {"lora.rank": 8, "lora.alpha": 16, "lora.target_modules": ["q_proj", "v_proj"], "lora.learning_rate": 0.0},
        {"lora.rank": 8, "lora.alpha": 16, "lora.only": False},
        {"lora.rank": 8, "lora.alpha": 16, "lora.save_merged": False, "model.path": "org/m", "stages": ["sft"]},
        {"lora.rank": 8, "lora.alpha": 16, "lora.save_merged": False, "stages": ["ppo"]},  # of whatever the stage finds
        {"critic_lora.rank": 8, "critic_lora.alpha": 16, "critic_lora.save_merged": False},  # its base is a reward stage's
        {"model.family": "llama", "model.num_key_value_heads": 2, "model.head_dim": 32},
        {"model.family": "bloom", "model.max_position_embeddings": 1},  # ALiBi
        {"model.path": "org/model", "model.family": "anything", "model.num_attention_heads": 5, "ppo.critic": "actor"},
        {"model.path": "org/model", "model.gguf_file": "a.gguf", "ppo.critic": "actor"},
        {"model.path": "org/model", "ppo.critic": "org/critic"},
        {"model.path": "org/model", "ppo.reward": "org/reward"},  # whose tokenizer is looked at when it is there
        {"model.path": "org/model", "stages": ["sft", "reward"]},
        {"ppo.dropout": 0.1, "ppo.ratio_tolerance": 1.0},
        {"ppo.dropout": 0.1, "stages": ["sft"]},
        {"ppo.critic_dropout": 0.1},
        {"ppo.length_penalty": -0.5},
        {"ppo.ptx_coef": 27.8},
        {"ppo.ptx_coef": 1.0, "ppo.ptx.source": "file", "ppo.ptx.file": __file__},
        {"ppo.ptx_coef": 1.0, "ppo.ptx.source": "hub", "ppo.ptx.hub": "org/texts"},
        {"ppo.ptx.source": "hub"},  # with coefficient 0
        {"ppo.ema": True, "ppo.ema_decay": 0.999, "ppo.ema_start": 5, "ppo.ema_interval": 3},
        {"rollout.fixed_length": True, "ppo.eos_penalty": None},
        {"reward.normalize": "standard"},
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


def test_only_what_runs_needs_an_output_root_that_can_be_written(make_config, set_key, monkeypatch, tmp_path):
    monkeypatch.setattr("rlhf.config.inputs.os.access", lambda *_: False)
    config = set_key(make_config(), "output_root", str(tmp_path / "outputs"))
    with pytest.raises(ConfigError, match=rf"^output_root=.*{tmp_path} cannot be written; choose another directory"):
        check(config)
    check(set_key(config, "dry_run", True))


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
