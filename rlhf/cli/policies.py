"""The models that a verb talks to: which they are, and the configuration that each answers with."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.catalog.stage import stage_kinds
from rlhf.config.checks import check_devices
from rlhf.config.directories import key_of
from rlhf.config.errors import ConfigError, raise_problems
from rlhf.config.keys import matches_prefix
from rlhf.config.points import compose_config
from rlhf.config.rollouts import SAMPLING, check_sampling
from rlhf.config.schema import Config
from rlhf.config.values import check_values
from rlhf.experiment.policies import BASE, Policy, find_policy, find_start, with_saved_keys

if TYPE_CHECKING:
    from rlhf.chat.model import ChatModel

# The keys that a model is asked with, by prefix: all others would do nothing.
READ = (
    *(f"rollout.{name}" for name in SAMPLING), "hardware", "precision", "data.prompt_format", "data.response_format",
    "model.trust_remote_code", "gold", "output_root",
)  # fmt: skip
# And of a model that no stage made.
READ_OF_HUB = ("model.revision", "model.gguf_file")
# The keys that decide how a model without a template of its own reads a conversation.
FORMATS = ("data.prompt_format", "data.response_format")
# Tokens of an answer of a model that no stage made, unless rollout.max_new_tokens says otherwise.
ANSWER_TOKENS = 512


def find_policies(models: Sequence[str], beside: str | None, key: str) -> list[Policy]:
    """Return the models that are named, and the one beside the first, with names that tell them apart. Raises ConfigError
    where there is none."""
    policies = [find_policy(model, key) for model in models]
    if beside is not None:
        is_word = beside in (BASE, *stage_kinds()) and not Path(beside).exists()
        policies.append(find_start(policies[0], beside, "--beside") if is_word else find_policy(beside, "--beside"))
    names = [policy.name for policy in policies]
    return [policy if names.count(policy.name) == 1 else replace(policy, name=policy.given) for policy in policies]


def load_models(
    policies: Sequence[Policy], overrides: Sequence[str], are_compared: bool
) -> "list[tuple[ChatModel, Config]]":
    """Load models, each with the configuration that it answers with. If they `are_compared`, all are sampled as the first,
    and those that no stage made read prompts in its format. Raises ConfigError where one cannot be loaded."""
    configs = [configure(policy, overrides) for policy in policies]
    if are_compared:
        first = configs[0]
        configs = [replace(config, rollout=first.rollout) for config in configs]
        pairs = zip(policies, configs, strict=True)
        configs = [config if policy.stage is not None else replace(config, data=first.data) for policy, config in pairs]
    os.environ.setdefault("DS_ACCELERATOR", configs[0].hardware.device)

    from rlhf.chat.model import ChatModel  # which imports torch
    from rlhf.runtime.distributed import silence_libraries

    silence_libraries()
    loaded = [(ChatModel(policy, config), config) for policy, config in zip(policies, configs, strict=True)]
    typed = [word for word in overrides if key_of(word) in FORMATS]
    if typed and all(model.has_own_template for model, _ in loaded):
        key, _, value = typed[0].partition("=")
        raise ConfigError(key, value, f"{policies[0].given} has a template of its own", "leave it out")
    return loaded


def configure(policy: Policy, overrides: Sequence[str]) -> Config:
    """Return the configuration that a model answers with.

    Sampling and format of prompts are those of its stage, as far as overrides do not say otherwise. A model that no stage
    made is sampled as it is, with up to 512 tokens. It is on a GPU if there is one, unless `hardware` says otherwise.

    Raises:
        ConfigError: An override is wrong, or decides nothing here.
    """
    typed = {key_of(word) for word in overrides}
    read = READ if policy.stage is not None else READ + READ_OF_HUB
    unread = [word for word in overrides if not matches_prefix(key_of(word), read)]
    fix = f"give rollout.* ({', '.join(SAMPLING)}), hardware=, precision=, data.prompt_format= or gold="
    raise_problems(ConfigError(key_of(w), w.partition("=")[2], "it decides nothing of a conversation", fix) for w in unread)
    config = compose_config(*overrides)
    if policy.stage is None and "rollout.max_new_tokens" not in typed:
        config = replace(config, rollout=replace(config.rollout, max_new_tokens=ANSWER_TOKENS))
    for group in ("data", "rollout"):
        config = with_saved_keys(config, policy.spec, group, typed)
    raise_problems([*check_answer_keys(config), *check_sampling(config)])
    if not any(key.partition(".")[0] == "hardware" for key in typed):
        return on_best_device(config, is_dtype_typed=any(key.partition(".")[0] == "precision" for key in typed))
    check_devices(config)
    return config


def check_answer_keys(config: Config) -> Iterator[ConfigError]:
    """Check each key of `rollout` that decides an answer by itself."""
    yield from (error for error, _ in check_values({f"rollout.{key}": getattr(config.rollout, key) for key in SAMPLING}))


def on_best_device(config: Config, is_dtype_typed: bool) -> Config:
    """Return a configuration of this machine's GPU, in bfloat16; of the CPU where there is none."""
    found = replace(config, hardware=replace(config.hardware, device="cuda"))
    try:
        check_devices(found)
    except ConfigError:
        return config
    return found if is_dtype_typed else replace(found, precision=replace(config.precision, dtype="bf16"))
