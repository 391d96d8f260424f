"""Checks of a model before anything starts: its files, its head, its tokenizer, its longest sequence."""

from pathlib import Path
from typing import Any

from rlhf.config.derive import max_sequence
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config, Model
from rlhf.data.templates import build_template
from rlhf.experiment.integrity import json_problem
from rlhf.models.adapters import adapter_base
from rlhf.models.checkpoint import safetensors_names
from rlhf.models.families import last_position, shape_of
from rlhf.models.source import Source, load_hf_config
from rlhf.models.tokenizer import load_tokenizer

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def check_source(source: Source, config: Config, scorer: bool, declared: Model | None = None) -> None:
    """Raise ConfigError for a model that cannot be used: no configuration, no weights, too few positions, no scalar head
    (`scorer`) or one where a language model is wanted, a tokenizer with more tokens than the embedding has rows, or another
    shape than `declared`. Reads no weights."""
    path = Path(source.name_or_path)
    if config.dry_run and not path.is_dir():
        return  # nothing is asked of the hub, and nothing downloaded, to be looked at only
    base = adapter_base(source)
    settings = load_hf_config(base or source)
    shape = shape_of(settings)
    if path.is_dir() and not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        raise ConfigError(source.key, source.path, "the directory holds no weights", "give one with model.safetensors")
    check_positions(source, settings, config)
    check_head(source, scorer)
    check_tokenizer(source, shape["vocab_size"], config, scorer)
    if problem := json_problem(path):
        raise ConfigError(source.key, source.path, problem, "copy or download the model again")
    if declared is not None:
        told_apart = ("num_hidden_layers", "hidden_size", "num_attention_heads")
        differing = [key for key in told_apart if getattr(declared, key) != shape[key]]
        if differing:
            found = ", ".join(f"{key}={shape[key]}" for key in differing)
            group = source.key.split(".")[0]
            fix = f"use {group}=local {source.key}=..., which reads the shape"
            raise ConfigError(source.key, source.path, f"it has {found}, unlike {group}={declared.name}", fix)


def check_positions(source: Source, settings: Any, config: Config) -> None:
    """Check that the longest prompt and response fit."""
    if last_position(settings) < max_sequence(config):
        problem = f"it has {last_position(settings)} positions, but prompt and response reach {max_sequence(config)} tokens"
        raise ConfigError(source.key, source.path, problem, "lower data.max_prompt_tokens or the response lengths")


def check_head(source: Source, scorer: bool) -> None:
    """Check that a scorer's files hold a head, and a language model's none (where the files tell without being loaded)."""
    try:
        names = safetensors_names(Path(source.name_or_path))
    except (OSError, ValueError) as error:
        problem = f"its weights cannot be read ({first_line(error)})"
        raise ConfigError(source.key, source.path, problem, "copy or download the model again") from error
    if names is None:
        return
    if scorer and "score.weight" not in names:
        problem = "it is no reward model: it has no weights for score.weight"
        raise ConfigError(source.key, source.path, problem, "give a sequence classifier with one label")
    if not scorer and source.key in ("ppo.actor", "model.path") and "score.weight" in names:
        raise ConfigError(source.key, source.path, "it is a reward model, not a language model", "give a language model")


def check_tokenizer(source: Source, rows: int, config: Config, scorer: bool) -> None:
    """Check that every token but padding has a row in the embedding."""
    if source.gguf_file is not None:
        return
    tokenizer = load_tokenizer(source.path, source.key, source.revision, source.trust_remote_code)
    if not scorer:
        template = build_template(config.data, tokenizer)
        if source.key == "model.path" and config.sft.loss_on == "assistant":
            template.check_turns()
    largest = max(number for token, number in tokenizer.get_vocab().items() if number != tokenizer.pad_token_id)
    if largest >= rows:
        problem = f"its tokenizer has {largest + 1} tokens, its embedding only {rows} rows"
        raise ConfigError(source.key, source.path, problem, "give the tokenizer that belongs to the model")
