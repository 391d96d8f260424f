"""Every cross-check of a configuration. Nothing here needs torch, so what cannot work is refused before anything slow is
loaded."""

import os
import shutil
from pathlib import Path

from rlhf.config.derive import FAMILIES, batches, max_sequence, ranks, trained_stages
from rlhf.config.errors import ConfigError
from rlhf.config.ranges import STAGES, TRAINED, check_ranges
from rlhf.config.rollouts import check_cache, check_engine, check_sampling, check_tensor_parallel
from rlhf.config.schema import LORAS, ZEROS, Config, Lora, Model, Zero


def check(config: Config) -> None:
    """Raise ConfigError for the first thing in `config` that cannot work."""
    check_ranges(config)
    check_names(config)
    check_inputs(config)
    check_hardware(config)
    check_models(config)
    check_sampling(config)
    check_engine(config)
    check_tensor_parallel(config)
    check_lengths(config)
    check_batches(config)
    check_cache(config)
    check_writable(config)


def used_models(config: Config) -> list[tuple[str, Model]]:
    """The models that the stages which run start from, with their keys."""
    users = (("model", config.model, {"sft", "ppo"}), ("reward_model", config.reward_model, {"reward", "ppo"}))
    return [(key, model) for key, model, stages in users if stages & set(trained_stages(config))]


def one_of(key: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse a value outside a short list."""
    if value not in options:
        raise ConfigError(key, value, "there is no such choice", f"choose one of {', '.join(map(str, options))}")


def check_names(config: Config) -> None:
    """Choices that are names."""
    if not config.stages:
        raise ConfigError("stages", config.stages, "there is nothing to run", "choose stage=all, sft, reward, ppo or bench")
    for stage in config.stages:
        one_of("stages", stage, STAGES)
    if "bench" in config.stages and len(config.stages) > 1:
        problem = "a benchmark has random weights and runs alone"
        raise ConfigError("stages", config.stages, problem, "measure with stage=bench, train without")
    for key, model in used_models(config):
        if model.path is None and model.layers < 1:
            problem = f"{key}={model.name} has no shape of its own"
            raise ConfigError(f"{key}.path", "null", problem, "give a directory or hub id")
        if model.path is None:
            one_of(f"{key}.family", model.family, FAMILIES)
    one_of("precision.dtype", config.precision.dtype, ("fp32", "bf16", "fp16"))
    one_of("data.source", config.data.source, ("demo", "files", "hub"))
    one_of("data.truncation", config.data.truncation, ("paragraphs", "left", "drop"))
    for stage in TRAINED:
        one_of(f"{stage}.schedule", getattr(config, stage).schedule, ("linear", "cosine", "constant"))
    one_of("sft.loss_on", config.sft.loss_on, ("completion", "full"))
    one_of("reward.normalize", config.reward.normalize, ("bias", "standard", "none"))
    one_of("ppo.kl_controller", config.ppo.kl_controller, ("fixed", "adaptive"))
    one_of("ppo.eos_penalty_mode", config.ppo.eos_penalty_mode, (None, "replace", "subtract"))
    one_of("ppo.ptx.source", config.ppo.ptx.source, ("demonstrations", "file", "hub"))
    one_of("rollout.engine", config.rollout.engine, ("hf", "hybrid", "paged", "deepspeed"))
    one_of("ppo.packing", config.ppo.packing, ("packed", "length", "none"))
    one_of("bench.what", config.bench.what, ("step3", "rollout", "score", "train", "stages"))
    for engine in config.bench.engines or []:
        one_of("bench.engines", engine, ("hybrid", "paged", "deepspeed"))
    if config.bench.engines and config.bench.what != "rollout":
        problem = f"bench.what={config.bench.what} measures the configuration's own engine"
        raise ConfigError("bench.engines", config.bench.engines, problem, "set bench.what=rollout, or choose with rollout=")
    one_of("bench.lengths", config.bench.lengths, ("fixed", "real"))
    one_of("rollout.gather", config.rollout.gather, ("auto", "all", "layers"))
    one_of("launcher.kind", config.launcher.kind, ("auto", "inline", "local", "slurm"))
    one_of("checkpoint.on_error", config.checkpoint.on_error, ("go_on", "stop"))
    one_of("sweep.direction", config.sweep.direction, ("maximize", "minimize"))
    one_of("sweep.sampler", config.sweep.sampler, ("tpe", "random"))
    one_of("tracking.wandb.mode", config.tracking.wandb.mode, (None, "online", "offline", "disabled"))
    try:
        shown = config.data.prompt_format.format(prompt="?!?")
    except (KeyError, ValueError, IndexError):
        shown = ""
    if "?!?" not in shown:
        raise ConfigError(
            "data.prompt_format", repr(config.data.prompt_format), "it has no place for the prompt", "add {prompt}"
        )


def check_hardware(config: Config) -> None:
    """Devices, number format and ZeRO fit together, and the devices are here."""
    hardware = config.hardware
    one_of("hardware.device", hardware.device, ("cpu", "cuda"))
    if getattr(hardware.peak_tflops, config.precision.dtype) is None:
        raise ConfigError(
            "precision.dtype",
            config.precision.dtype,
            f"{hardware.gpu} has no such format",
            f"try precision={hardware.dtype}",
        )
    for key in ZEROS:
        check_zero(key, getattr(config, key), config)
    partitions = {getattr(config, key).secondary_partition for key in ZEROS} - {1}
    if len(partitions) > 1:
        problem = "DeepSpeed has one size of secondary partitions for all models"
        raise ConfigError("zero.secondary_partition", config.zero.secondary_partition, problem, "give all the same")
    if config.ppo.dropout > 0 and config.ppo.ratio_tolerance is None and "ppo" in trained_stages(config):
        problem = "with dropout the first mini-batch cannot reproduce the rollout's log-probabilities"
        raise ConfigError("ppo.dropout", config.ppo.dropout, problem, "set ppo.ratio_tolerance too, as 1.0")
    if "ppo" in trained_stages(config):
        check_phases(config)
    if config.launcher.kind == "inline" and ranks(config) > 1:
        raise ConfigError(
            "launcher.kind", "inline", f"one process cannot drive {ranks(config)} devices", "try launcher=local"
        )


def check_phases(config: Config) -> None:
    """Models of PPO that are put aside, or compiled, can be."""
    ppo = config.ppo
    if ppo.offload_idle and config.hardware.device == "cpu":
        problem = "models are in host memory anyway"
        raise ConfigError("ppo.offload_idle", True, problem, "set it false, or choose hardware with a GPU")
    for key in ("critic_zero", "reference_zero", "reward_zero"):
        zero = getattr(config, key)
        if ppo.offload_idle and (zero.offload_parameters or zero.secondary_partition > 1):
            kept = "offload_parameters" if zero.offload_parameters else "secondary_partition"
            problem = f"{key}.{kept} already says where that model's weights are"
            raise ConfigError("ppo.offload_idle", True, problem, "choose one of the two")
    for key in ("zero", "critic_zero"):
        if ppo.compile and getattr(config, key).stage == 3:
            problem = f"{key}.stage=3 gathers weights by hooks inside the layers, which cannot be compiled"
            raise ConfigError(
                "ppo.compile", True, problem, f"set it false, or try {'' if key == 'zero' else 'zero@'}{key}=2"
            )


def check_zero(key: str, zero: Zero, config: Config) -> None:
    """A role's ZeRO settings fit together and the hardware; `key` names them."""
    option = "zero" if key == "zero" else f"zero@{key}"
    one_of(f"{key}.stage", zero.stage, (0, 1, 2, 3))
    if zero.offload_optimizer and zero.stage == 0:
        raise ConfigError(
            f"{key}.offload_optimizer", True, "ZeRO stage 0 keeps everything on the device", f"try {option}=2-offload"
        )
    if zero.offload_parameters and zero.stage != 3:
        raise ConfigError(
            f"{key}.offload_parameters", True, f"ZeRO stage {zero.stage} does not shard weights", f"try {option}=3-offload"
        )
    saves = zero.quantized_weights or zero.quantized_gradients or zero.secondary_partition > 1
    if saves and zero.stage != 3:
        problem = f"ZeRO++ is a form of stage 3, not of stage {zero.stage}"
        raise ConfigError(f"{key}.stage", zero.stage, problem, f"try {option}=plusplus")
    if (zero.quantized_weights or zero.quantized_gradients) and config.hardware.device == "cpu":
        name = "quantized_weights" if zero.quantized_weights else "quantized_gradients"
        raise ConfigError(f"{key}.{name}", True, "DeepSpeed quantises on GPUs only", f"set {key}.{name}=false")
    if zero.secondary_partition < 1 or ranks(config) % zero.secondary_partition:
        problem = f"it does not divide the {ranks(config)} ranks"
        raise ConfigError(f"{key}.secondary_partition", zero.secondary_partition, problem, "try hardware.gpus_per_node's")


def check_devices(config: Config) -> None:
    """The devices asked for are on this machine (asked only when something is to run here), or SLURM is."""
    hardware, parallel = config.hardware, config.launcher.parallel
    if config.launcher.kind == "slurm":
        if shutil.which("sbatch") is None:
            problem = "there is no SLURM on this machine (no sbatch on PATH)"
            raise ConfigError("launcher", "slurm", problem, "log in to the cluster, or try launcher=local")
        return
    if hardware.nodes > 1:
        fix = "set hardware.nodes=1, or launcher=slurm"
        raise ConfigError("hardware.nodes", hardware.nodes, "stages run on this machine only", fix)
    if hardware.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = (
            len(list(Path("/dev").glob("nvidia[0-9]*")))
            if visible is None
            else len([d for d in visible.split(",") if d and d != "-1"])
        )
        if hardware.gpus_per_node <= there < parallel * hardware.gpus_per_node:
            problem = f"{parallel} stages of {hardware.gpus_per_node} GPUs at once need more than the {there} GPUs here"
            raise ConfigError("launcher.parallel", parallel, problem, f"try {there // hardware.gpus_per_node}")
        if there < hardware.gpus_per_node:
            fix = f"set hardware.gpus_per_node={there}" if there else "try hardware=cpu"
            raise ConfigError("hardware.gpus_per_node", hardware.gpus_per_node, f"this machine shows {there} GPUs", fix)


def check_models(config: Config) -> None:
    """Shapes that can be built, and an actor and a critic that can share a tokenizer."""
    for key, model in used_models(config):
        if model.path is None:
            check_shape(key, model)
        if model.gguf_file is not None and model.path is None:
            raise ConfigError(f"{key}.gguf_file", model.gguf_file, "there is no place to find it", f"give {key}.path too")
    for key in LORAS:
        check_lora(config, key)
    given = config.ppo.actor is not None or config.ppo.reward is not None
    other = (config.model.path is None) != (config.reward_model.path is None)
    if "ppo" in config.stages and config.ppo.critic == "reward" and not given and other:
        raise ConfigError(
            "ppo.critic",
            "reward",
            f"the tokenizer of reward_model={config.reward_model.name} is not that of model={config.model.name}, so no "
            "critic can start from it",
            f"try ppo.critic=actor or reward_model={config.model.name}",
        )


def check_shape(key: str, model: Model) -> None:
    """A shape that is built here, with random weights, is one that its family can have."""
    for name in ("layers", "width", "head_width", "ffn", "embedding", "vocabulary", "positions"):
        if getattr(model, name) < 1:
            raise ConfigError(f"{key}.{name}", getattr(model, name), "there is no such model", "give a number above 0")
    if model.head_width % 2 and model.family not in ("opt", "bloom", "gpt_neo", "gpt2"):
        problem = f"a {model.family} rotates pairs of elements"
        raise ConfigError(f"{key}.head_width", model.head_width, problem, "give an even number")
    if model.heads < 1 or model.width % model.heads:
        raise ConfigError(f"{key}.heads", model.heads, f"it does not divide the width {model.width}", "change one")
    if model.kv_heads < 1 or model.heads % model.kv_heads:
        raise ConfigError(f"{key}.kv_heads", model.kv_heads, f"it does not divide the {model.heads} heads", "change one")
    free = model.family in ("llama", "qwen3", "mistral", "gemma2")
    if not free and model.head_width != model.width // model.heads:
        fix = f"set {key}.head_width={model.width // model.heads}"
        raise ConfigError(f"{key}.head_width", model.head_width, f"a {model.family} has width / heads", fix)
    if model.family == "gpt_neo" and model.layers % 2:
        raise ConfigError(f"{key}.layers", model.layers, "a gpt_neo has pairs of layers", "give an even number")
    if model.family == "codegen" and model.heads % 4:
        raise ConfigError(f"{key}.heads", model.heads, "a codegen has a multiple of 4", "change it")


def check_lora(config: Config, key: str) -> None:
    """Adapters that learn something, and that can be found again."""
    lora: Lora = getattr(config, key)
    if lora.rank > 0 and lora.alpha <= 0:
        raise ConfigError(f"{key}.alpha", lora.alpha, "adapters scaled by it learn nothing", f"try {2 * lora.rank}")
    targets = lora.target_modules
    named = isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)
    if targets != "auto" and not named:
        fix = f"give auto or a list of names, as {key}.target_modules=[q_proj,v_proj]"
        raise ConfigError(f"{key}.target_modules", targets, "it names no modules", fix)
    if lora.rank > 0 and not lora.save_merged and not lora.only:
        raise ConfigError(f"{key}.save_merged", False, f"with {key}.only=false the adapters are not all", "set it true")
    stage, base = ("reward", config.reward_model) if key == "reward_lora" else ("sft", config.model)
    random = stage in config.stages and base.path is None and key != "critic_lora"
    if lora.rank > 0 and not lora.save_merged and random:
        problem = "random weights under the adapters would be lost"
        raise ConfigError(f"{key}.save_merged", False, problem, "set it true, or start from a model.path")
    if lora.rank > 0 and not lora.save_merged and (base.revision or base.gguf_file):
        problem = "adapters name the model they belong to by its path alone"
        raise ConfigError(f"{key}.save_merged", False, problem, "set it true, or give neither revision nor gguf_file")
    sharded = next((name for name in ZEROS if getattr(config, name).stage == 3), None)
    if lora.rank > 0 and not lora.save_merged and sharded and "ppo" in config.stages:
        problem = f"PPO cannot merge them into a model that {sharded}.stage=3 shards"
        raise ConfigError(f"{key}.save_merged", False, problem, "set it true")
    before = {"lora": ("sft", config.lora), "critic_lora": ("sft", config.lora)}
    if config.ppo.critic == "reward":
        before["critic_lora"] = ("reward", config.reward_lora)
    earlier, first = before.get(key, ("", lora))
    if lora.rank > 0 and not lora.save_merged and {"ppo", earlier} <= set(config.stages) and not first.save_merged:
        problem = f"PPO starts from the {earlier} stage's adapters, which its own by themselves would leave out"
        raise ConfigError(f"{key}.save_merged", False, problem, "set it true")
    shifted = "reward" in config.stages and config.reward.normalize != "none"
    if key == "reward_lora" and lora.rank > 0 and not lora.save_merged and shifted:
        problem = "the scores' bias is kept in the config.json of the merged model"
        raise ConfigError(f"{key}.save_merged", False, problem, "set it true, or reward.normalize=none")


def check_lengths(config: Config) -> None:
    """Responses can end, and sequences fit the models' positions."""
    rollout = config.rollout
    if (rollout.fixed_length or rollout.min_new_tokens == rollout.max_new_tokens) and config.ppo.eos_penalty is not None:
        raise ConfigError(
            "ppo.eos_penalty",
            config.ppo.eos_penalty,
            "with responses of fixed length none can end, so all would get it",
            "set ppo.eos_penalty=null",
        )
    for key, model in used_models(config):
        unlimited = model.family == "bloom" or "bench" in config.stages  # ALiBi; models that are made to measure
        if max_sequence(config) > model.positions and not unlimited:
            raise ConfigError(
                f"{key}.positions", model.positions, f"prompt and response together reach {max_sequence(config)} tokens",
                f"lower data.max_prompt_tokens={config.data.max_prompt_tokens} or the response lengths",
            )  # fmt: skip
        if model.path is None and config.data.tokenizer_vocabulary > model.vocabulary:
            raise ConfigError(
                "data.tokenizer_vocabulary",
                config.data.tokenizer_vocabulary,
                f"{key} has {model.vocabulary} rows",
                f"try {model.vocabulary}",
            )


def check_batches(config: Config) -> None:
    """Every global batch of the stages that run can be shared by the ranks."""
    for stage in trained_stages(config):
        batches(config, stage)
    ppo, world, uses_ppo = config.ppo, ranks(config), "ppo" in trained_stages(config)
    if uses_ppo and ppo.rollout_batch_size % ppo.batch_size:
        near = max(1, round(ppo.rollout_batch_size / ppo.batch_size)) * ppo.batch_size
        raise ConfigError(
            "ppo.rollout_batch_size",
            ppo.rollout_batch_size,
            f"it is not a multiple of ppo.batch_size={ppo.batch_size}",
            f"try {near}",
        )
    micro, copies, own = config.rollout.micro_batch_size, config.rollout.samples_per_prompt, ppo.rollout_batch_size // world
    if uses_ppo and micro is not None and (micro < 1 or own % micro):
        problem = f"it does not divide the {own} responses of a rank"
        raise ConfigError("rollout.micro_batch_size", micro, problem, "try null")
    if uses_ppo and own % copies:
        fits = [number for number in range(1, own + 1) if own % number == 0]
        problem = f"it does not divide the {own} responses of a rank"
        raise ConfigError("rollout.samples_per_prompt", copies, problem, f"try one of {fits}")


def check_inputs(config: Config) -> None:
    """Files and directories that the configuration names are there."""
    if config.data.source == "files":
        for key in ("train", "heldout"):
            path = getattr(config.data.files, key)
            if path is None or not Path(path).is_file():
                raise ConfigError(
                    f"data.files.{key}", path, "there is no such file", "give a .jsonl, .json, .csv or .parquet file"
                )
    if config.data.source == "hub" and config.data.hub.name is None:
        raise ConfigError(
            "data.hub.name", "null", "data=hub needs a data set", "give one, as data.hub.name=Dahoas/rm-static"
        )
    check_ptx(config)
    for key, path in (("model.path", config.model.path), ("reward_model.path", config.reward_model.path),
                      ("ppo.actor", config.ppo.actor), ("ppo.reward", config.ppo.reward),
                      ("ppo.critic", config.ppo.critic)):  # fmt: skip
        if (
            path is not None
            and path.startswith(("/", "./", "../", "~", "outputs/"))
            and not Path(path).expanduser().is_dir()
        ):
            raise ConfigError(
                key, path, "there is no such directory", "give a directory that holds config.json, or a hub id"
            )


def check_ptx(config: Config) -> None:
    """The texts of PPO's pre-training loss are named, if it is asked for."""
    ptx = config.ppo.ptx
    if config.ppo.ptx_coef > 0 and ptx.source == "file" and (ptx.file is None or not Path(ptx.file).is_file()):
        fix = "give a .jsonl, .json, .csv, .parquet or .txt file"
        raise ConfigError("ppo.ptx.file", ptx.file, "there is no such file", fix)
    if config.ppo.ptx_coef > 0 and ptx.source == "hub" and ptx.hub is None:
        raise ConfigError("ppo.ptx.hub", "null", "ppo.ptx.source=hub needs a data set", "give one, as ppo.ptx.hub=NAME")


def check_writable(config: Config) -> None:
    """Results can be written."""
    root = Path(config.output_root)
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            "output_root",
            config.output_root,
            f"{existing} cannot be written",
            "choose another directory: output_root=...",
        )
