"""The shapes of models, and adapters that suit them."""

from collections.abc import Iterator

from rlhf.catalog.families import FAMILIES
from rlhf.config.derive import used_models
from rlhf.config.errors import ConfigError
from rlhf.config.schema import LORAS, ZEROS, Config, Lora, Model

HEAD = "lm_head"
# The keys without which memory and batches cannot be counted.
COUNTED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
# The keys that are above 0 in a shape that is built here; numbers of heads are looked at by themselves.
STATED = (
    "num_hidden_layers", "hidden_size", "head_dim", "intermediate_size", "word_embed_proj_dim", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def check_models(config: Config) -> Iterator[ConfigError]:
    """Shapes that can be built, and an actor and a critic that can share a tokenizer."""
    for key, model in used_models(config):
        if model.path is None and model.num_hidden_layers < 1:
            problem = f"{key}={model.name} has no shape of its own"
            yield ConfigError(f"{key}.path", "null", problem, "give a directory or hub id")
        elif model.path is None and model.family not in FAMILIES:
            fix = f"choose one of {', '.join(FAMILIES)}"
            yield ConfigError(f"{key}.family", model.family, "there is no such choice", fix)
        elif model.path is None:
            yield from check_shape(key, model)
        if model.gguf_file is not None and model.path is None:
            yield ConfigError(f"{key}.gguf_file", model.gguf_file, "there is no place to find it", f"give {key}.path too")
    for key in LORAS:
        yield from check_lora(config, key)
        yield from check_targets(config, key)
    given = config.ppo.actor is not None or config.ppo.reward is not None
    other = (config.model.path is None) != (config.reward_model.path is None)
    if "ppo" in config.stages and config.ppo.critic == "reward" and not given and other:
        yield ConfigError(
            "ppo.critic",
            "reward",
            f"the tokenizer of reward_model={config.reward_model.name} is not that of model={config.model.name}, so no "
            "critic can start from it",
            f"try ppo.critic=actor or reward_model={config.model.name}",
        )


def is_whole(model: Model) -> bool:
    """Whether the model has a shape, so that memory and batches can be counted."""
    return all(getattr(model, name) > 0 for name in COUNTED)


def check_shape(key: str, model: Model) -> Iterator[ConfigError]:
    """A shape that is built here, with random weights, is one that its family can have."""
    for name in STATED:
        if getattr(model, name) < 1:
            yield ConfigError(f"{key}.{name}", getattr(model, name), "there is no such model", "give a number above 0")
    family = FAMILIES[model.family]
    if model.head_dim % 2 and family.rotates_pairs:
        problem = f"a {model.family} rotates pairs of elements"
        yield ConfigError(f"{key}.head_dim", model.head_dim, problem, "give an even number")
    if model.hidden_size < 1:
        return
    if model.num_attention_heads < 1 or model.hidden_size % model.num_attention_heads:
        yield ConfigError(
            f"{key}.num_attention_heads",
            model.num_attention_heads,
            f"it does not divide the width {model.hidden_size}",
            "change one",
        )
        return
    if model.num_key_value_heads < 1 or model.num_attention_heads % model.num_key_value_heads:
        yield ConfigError(
            f"{key}.num_key_value_heads",
            model.num_key_value_heads,
            f"it does not divide the {model.num_attention_heads} heads",
            "change one",
        )
    if not family.free_head_width and model.head_dim != model.hidden_size // model.num_attention_heads:
        fix = f"set {key}.head_dim={model.hidden_size // model.num_attention_heads}"
        yield ConfigError(f"{key}.head_dim", model.head_dim, f"a {model.family} has width / heads", fix)
    for name, problem, fix in family.problems(model):
        yield ConfigError(f"{key}.{name}", getattr(model, name), problem, fix)


def check_lora(config: Config, key: str) -> Iterator[ConfigError]:
    """Adapters that learn something, and that can be found again."""
    lora: Lora = getattr(config, key)
    if lora.rank > 0 and lora.alpha <= 0:
        yield ConfigError(f"{key}.alpha", lora.alpha, "adapters scaled by it learn nothing", f"try {2 * lora.rank}")
    targets = lora.target_modules
    named = isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)
    if targets != "auto" and not named:
        fix = f"give auto or a list of names, as {key}.target_modules=[q_proj,v_proj]"
        yield ConfigError(f"{key}.target_modules", targets, "it names no modules", fix)
    if lora.rank > 0 and not lora.save_merged and not lora.only:
        yield ConfigError(f"{key}.save_merged", False, f"with {key}.only=false the adapters are not all", "set it true")
    stage, base = ("reward", config.reward_model) if key == "reward_lora" else ("sft", config.model)
    random = stage in config.stages and base.path is None and key != "critic_lora"
    if lora.rank > 0 and not lora.save_merged and random:
        problem = "random weights under the adapters would be lost"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true, or start from a model.path")
    if lora.rank > 0 and not lora.save_merged and (base.revision or base.gguf_file):
        problem = "adapters name the model they belong to by its path alone"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true, or give neither revision nor gguf_file")
    sharded = next((name for name in ZEROS if getattr(config, name).stage == 3), None)
    if lora.rank > 0 and not lora.save_merged and sharded and "ppo" in config.stages:
        problem = f"PPO cannot merge them into a model that {sharded}.stage=3 shards"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true")
    before = {"lora": ("sft", config.lora), "critic_lora": ("sft", config.lora)}
    if config.ppo.critic == "reward":
        before["critic_lora"] = ("reward", config.reward_lora)
    earlier, first = before.get(key, ("", lora))
    if lora.rank > 0 and not lora.save_merged and {"ppo", earlier} <= set(config.stages) and not first.save_merged:
        problem = f"PPO starts from the {earlier} stage's adapters, which its own by themselves would leave out"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true")
    shifted = "reward" in config.stages and config.reward.normalize != "none"
    if key == "reward_lora" and lora.rank > 0 and not lora.save_merged and shifted:
        problem = "the scores' bias is kept in the config.json of the merged model"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true, or reward.normalize=none")


def check_targets(config: Config, key: str) -> Iterator[ConfigError]:
    """Adapters are no wider than the layers they are put on, and the layers are those of the family."""
    lora: Lora = getattr(config, key)
    model = adapted_model(config, key)
    if lora.rank == 0 or model is None or model.hidden_size < 1:
        return
    if lora.rank > model.hidden_size:
        problem = f"adapters of a rank above the model's width, {model.hidden_size}, are larger than its weights"
        yield ConfigError(f"{key}.rank", lora.rank, problem, f"give at most {model.hidden_size}")
    if not isinstance(lora.target_modules, list) or model.family not in FAMILIES:
        return
    names = [*FAMILIES[model.family].layer_names.leaves]
    names += ["project_in", "project_out"] if model.word_embed_proj_dim != model.hidden_size else []
    for target in map(str, lora.target_modules):
        if target.rpartition(".")[2] == HEAD and key == "lora" and not model.tie_word_embeddings:
            continue
        if target.rpartition(".")[2] not in names:
            problem = f"a {model.family} has no such linear layer that can be adapted"
            yield ConfigError(f"{key}.target_modules", target, problem, f"choose among {', '.join(names)}")


def adapted_model(config: Config, key: str) -> Model | None:
    """The model that adapters are put on, as far as its shape is known: `key` is their group."""
    if key == "lora":
        given = None if config.stages != ["ppo"] else config.ppo.actor
        return config.model if given is None else None
    if key == "critic_lora" and config.ppo.critic not in ("actor", "reward"):
        return None
    return config.model if key == "critic_lora" and config.ppo.critic == "actor" else config.reward_model
