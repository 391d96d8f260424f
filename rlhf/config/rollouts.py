"""Checks of rollouts: sampling options agree, the sampler serves the actor, ranks can share its layers."""

from collections.abc import Iterator

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.sampler import sampler_problem
from rlhf.config.derive import samples
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config

# The keys of `rollout` that decide a single answer.
SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "max_new_tokens", "min_new_tokens",
)  # fmt: skip


def check_sampling(config: Config) -> Iterator[ConfigError]:
    """Check that sampling options agree with each other."""
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
    """Check that groups of ranks can share the actor's layers while they sample."""
    count, model, key = config.rollout.tensor_parallel, config.model, "rollout.tensor_parallel"
    if count == 1 or not samples(config):
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
    """Check that the sampler serves the actor."""
    problem = sampler_problem(config) if samples(config) else None
    if problem is not None:
        yield problem
