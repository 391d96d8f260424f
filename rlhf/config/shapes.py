"""The shapes of models, and adapters that suit them."""

from collections.abc import Iterator

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.stage import kind_of
from rlhf.config.derive import asked_kinds, used_models
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import LORAS, Config, Lora, Model

HEAD = "lm_head"
# The keys without which memory and batches cannot be counted.
COUNTED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
# The keys that are above 0 in a shape that is built here; numbers of heads are looked at by themselves.
STATED = (
    "num_hidden_layers", "hidden_size", "head_dim", "intermediate_size", "word_embed_proj_dim", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def check_models(config: Config) -> Iterator[ConfigError]:
    """Shapes that can be built, and adapters that suit them."""
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


def is_whole(model: Model) -> bool:
    """Whether the model has a shape, so that memory and batches can be counted."""
    return all(getattr(model, name) > 0 for name in COUNTED)


def check_shape(key: str, model: Model) -> Iterator[ConfigError]:
    """Check that a shape that is built here, with random weights, is one that its family can have."""
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
    group = "reward_model" if key == "reward_lora" else "model"
    base: Model = getattr(config, group)
    random = base.path is None and key != "critic_lora" and any(kind.loads == group for kind in asked_kinds(config))
    if lora.rank > 0 and not lora.save_merged and random:
        problem = "random weights under the adapters would be lost"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true, or start from a model.path")
    if lora.rank > 0 and not lora.save_merged and (base.revision or base.gguf_file):
        problem = "adapters name the model they belong to by its path alone"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true, or give neither revision nor gguf_file")


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
    """Return the model that adapters are put on, as far as its shape is known: `key` is their group."""
    if key == "lora":
        return None if starts_elsewhere(config) else config.model
    if key == "critic_lora" and config.ppo.critic not in ("actor", "reward"):
        return None
    return config.model if key == "critic_lora" and config.ppo.critic == "actor" else config.reward_model


def starts_elsewhere(config: Config) -> bool:
    """Whether no stage that is asked for loads `model`, and one is given by path what a stage would make of that model."""
    kinds = asked_kinds(config)
    given = [
        entry
        for kind in kinds
        for entry in kind.find_inputs(config)
        if entry.stage and get_key(config, entry.key) is not None
    ]
    made = any(kind_of(str(entry.stage)).loads == "model" for entry in given)
    return made and not any(kind.loads == "model" for kind in kinds)
