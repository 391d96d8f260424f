"""Reward models of DeepSpeed-Chat, step 2, as transformers' sequence classifiers with one label, of the same scores."""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from rlhf.config.errors import ConfigError, first_line
from rlhf.models.heads import BIAS, SCALE, classifier_class
from rlhf.models.source import Source, load_hf_config
from rlhf.models.tokenizer import load_tokenizer

KEY = "convert-reward"
WEIGHTS = "pytorch_model.bin"
# How DeepSpeed-Chat calls the body, before October 2023 misspelled, and the head.
BODIES, HEAD = ("rwtransformer.", "rwtranrsformer."), "v_head.weight"
# Constants that older releases of transformers saved among the weights.
CONSTANTS = re.compile(r"\.(attn\.(bias|masked_bias)|attention\.(bias|masked_bias)|rotary_emb\.inv_freq|position_ids)$")


def convert_reward_model(directory: Path, output: Path) -> None:
    """Write a reward model of DeepSpeed-Chat as one that `ppo.reward` and `rewards.NAME.path` take, with its tokenizer.

    Args:
        directory: What step 2 has saved: config.json, pytorch_model.bin and the tokenizer's files.
        output: An empty or new directory.

    Raises:
        ConfigError: It is no such directory, or its weights are not those of its configuration.
    """
    weights = read_weights(directory)
    settings = load_hf_config(Source(str(directory), KEY))
    settings.num_labels = 1
    setattr(settings, BIAS, 0.0)
    setattr(settings, SCALE, 1.0)
    kind = classifier_class(settings)
    with torch.device("meta"):
        model: Any = kind(settings)
    renamed = rename_weights(weights, model.base_model_prefix)
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    if (rows := renamed.get(f"{embedding}.weight")) is not None:  # DeepSpeed-Chat pads the vocabulary
        settings.vocab_size = rows.size(0)
    model = kind(settings).to(next(iter(renamed.values())).dtype)
    fit(model, renamed, directory)
    tokenizer = load_tokenizer(str(directory), KEY)
    pad = int(tokenizer.pad_token_id)
    model.config.pad_token_id = pad if pad < settings.vocab_size else None
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read the weights, and nothing but tensors. Raises ConfigError where they are not DeepSpeed-Chat's."""
    file, fix = (
        directory / WEIGHTS,
        f"give the directory that step 2 of DeepSpeed-Chat wrote, with config.json and {WEIGHTS}",
    )
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise ConfigError(KEY, directory, f"{WEIGHTS} cannot be read ({first_line(error)})", fix) from error
    is_named = isinstance(found, Mapping) and HEAD in found and any(name.startswith(BODIES) for name in found)
    if not is_named:
        raise ConfigError(KEY, directory, f"{WEIGHTS} holds no rwtransformer.* and {HEAD}", fix)
    return dict(found)


def rename_weights(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights under the names of transformers' classifier, whose body is called `prefix`."""
    renamed = {"score.weight": weights[HEAD]}
    for name, tensor in weights.items():
        body = next((body for body in BODIES if name.startswith(body)), None)
        if body is not None and not CONSTANTS.search(name):
            renamed[f"{prefix}.{name.removeprefix(body)}"] = tensor
        elif body is None and name != HEAD:
            renamed[name] = tensor
    return renamed


def fit(model: Any, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Load the weights into a classifier. Raises ConfigError where one is missing, left over or of another shape."""
    fix = "give a directory whose config.json is that of its weights"
    try:
        report = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(KEY, directory, f"its weights do not fit its config.json ({problem[:160]})", fix) from error
    own = {name for name, _ in model.named_parameters()}
    missing = sorted(set(report.missing_keys) & own)
    if missing or report.unexpected_keys:
        named = f"it lacks {missing[0]}" if missing else f"it has {report.unexpected_keys[0]}, which its model does not"
        raise ConfigError(KEY, directory, named, fix)
