"""What rollouts need: sampling options that agree, an engine that serves the actor, room for the key-value cache."""

from collections.abc import Iterator
from importlib.metadata import version

from rlhf.catalog.families import FAMILIES
from rlhf.config.derive import samples_responses
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config

# The last release of DeepSpeed that is known not to serve OPT with transformers 5.
NO_CACHE = (0, 19)


def check_sampling(config: Config) -> Iterator[ConfigError]:
    """Sampling options agree with each other."""
    rollout = config.rollout
    if rollout.min_new_tokens > rollout.max_new_tokens:
        problem = "it is more than rollout.max_new_tokens"
        yield ConfigError("rollout.min_new_tokens", rollout.min_new_tokens, problem, f"try {rollout.max_new_tokens}")
    if not all(rollout.stop):
        yield ConfigError("rollout.stop", rollout.stop, "an empty text would end every response", "leave it out")
    if rollout.stop and rollout.fixed_length:
        problem = "with rollout.fixed_length=true nothing ends a response"
        yield ConfigError("rollout.stop", rollout.stop, problem, "set rollout.fixed_length=false, or rollout.stop=[]")
    if not rollout.do_sample:
        for key, nothing in (("top_k", 0), ("top_p", 1.0), ("samples_per_prompt", 1)):
            if getattr(rollout, key) != nothing:
                problem = "with rollout.do_sample=false the likeliest token is taken"
                fix = f"set rollout.do_sample=true, or rollout.{key}={nothing:g}"
                yield ConfigError(f"rollout.{key}", getattr(rollout, key), problem, fix)


def check_tensor_parallel(config: Config) -> Iterator[ConfigError]:
    """Groups of ranks can share the actor's layers while they sample."""
    count, model, key = config.rollout.tensor_parallel, config.model, "rollout.tensor_parallel"
    if count == 1 or not samples_responses(config):
        return
    if config.rollout.engine != "hybrid":
        yield ConfigError(key, count, f"rollout={config.rollout.engine} samples on whole models", "try rollout=hybrid")
    if config.zero.stage != 3:
        yield ConfigError(key, count, f"at ZeRO stage {config.zero.stage} each device holds the actor whole", "try zero=3")
    if config.hardware.gpus_per_node % count:
        fix = "give a divisor"
        yield ConfigError(key, count, f"it does not divide the {config.hardware.gpus_per_node} devices of a node", fix)
    shareable = [name for name, family in FAMILIES.items() if family.shareable]
    if model.family not in shareable:
        problem = f"the layers of a {model.family} cannot be shared (but {', '.join(shareable)})"
        yield ConfigError(key, count, problem, "set it to 1")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(model, name) % count:
            yield ConfigError(key, count, f"it does not divide model.{name}={getattr(model, name)}", "give a divisor")


def check_engine(config: Config) -> Iterator[ConfigError]:
    """The rollout engine serves the actor."""
    if samples_responses(config) and config.rollout.engine == "paged":
        yield from check_paged(config)
    if samples_responses(config) and config.rollout.engine == "deepspeed":
        yield from check_deepspeed(config)


def check_paged(config: Config) -> Iterator[ConfigError]:
    """Continuous batching answers this family rightly, and has whole weights."""
    rollout, family, served = config.rollout, config.model.family, paged_families()
    if family not in served:
        problem = f"the continuous batching of transformers {version('transformers')} does not serve a {family}"
        yield ConfigError("rollout.engine", "paged", f"{problem} (but {', '.join(served)})", "try rollout=hybrid")
    if config.zero.stage == 3 and rollout.gather == "layers":
        problem = "ranks that sample at their own pace cannot gather layers together"
        yield ConfigError("rollout.gather", "layers", problem, "set rollout.gather=all, or try rollout=hybrid")


def paged_families() -> tuple[str, ...]:
    """The families that continuous batching serves here."""
    release = parse_release("transformers")
    return tuple(name for name, family in FAMILIES.items() if family.is_paged(release))


def check_deepspeed(config: Config) -> Iterator[ConfigError]:
    """DeepSpeed's hybrid engine has kernels for this actor here."""
    problem, family = None, config.model.family
    served = [name for name, known in FAMILIES.items() if known.has_deepspeed_kernels]
    if config.hardware.device == "cpu":
        problem = "DeepSpeed's hybrid engine has kernels for GPUs only"
    elif family not in served:
        problem = f"DeepSpeed's hybrid engine does not serve a {family} (but {', '.join(served)})"
    elif config.lora.rank > 0:
        problem = "DeepSpeed's hybrid engine adds adapters to the weights and subtracts them, which does not give them back"
    elif parse_release("deepspeed") <= NO_CACHE and parse_release("transformers") >= (5, 0):
        problem = (
            f"the hybrid engine of DeepSpeed {version('deepspeed')} wants the key-value cache of transformers 4, and "
            f"transformers is {version('transformers')}"
        )
    if problem is not None:
        yield ConfigError("rollout.engine", "deepspeed", problem, "try rollout=hybrid")


def parse_release(package: str) -> tuple[int, int]:
    """The release of an installed package, major and minor."""
    major, minor = version(package).split(".")[:2]
    return int(major), int(minor)
