"""Building and loading models: the policy (a causal language model) and the scorer (its body with one output)."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Model
from rlhf.data.streams import torch_seed
from rlhf.data.tokens import Tokenizer
from rlhf.models.heads import Scorer, init_head
from rlhf.models.lora import add_adapters

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Standard deviation of random weights times the root of the width: OPT's 0.006 to 0.02 suit widths from 768 up; a tiny
# model drawn that small learns to copy from the prompt ten times later, or never.
INIT_SCALE = 0.55
# What configurations call dropout.
DROPOUTS = (
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "activation_dropout",
    "layerdrop",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)


def new_policy(model: Model, config: Config, tokenizer: Tokenizer, dropout: float) -> nn.Module:
    """The policy that supervised fine-tuning starts from: `model.path`'s weights, or random ones of its shape."""
    if model.path is not None:
        return load_policy(model.path, config, dropout, model.revision, model.trust_remote_code)
    from transformers import AutoModelForCausalLM

    torch.manual_seed(torch_seed(config.seed, "policy weights"))
    policy: nn.Module = AutoModelForCausalLM.from_config(shape(model, tokenizer, dropout), dtype=dtype(config))
    return policy


def load_policy(
    path: str, config: Config, dropout: float, revision: str | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """A causal language model from a directory or hub id."""
    from transformers import AutoModelForCausalLM

    policy: nn.Module = from_pretrained(AutoModelForCausalLM, path, config, dropout, revision, trust_remote_code)
    return policy


def new_scorer(model: Model, config: Config, tokenizer: Tokenizer, dropout: float) -> Scorer:
    """The scorer that reward modelling starts from; its head is drawn from N(0, 1 / (width + 1))."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(torch_seed(config.seed, "scorer weights"))
    if model.path is None:
        settings = shape(model, tokenizer, dropout)
        settings.num_labels = 1
        classifier = AutoModelForSequenceClassification.from_config(settings, dtype=dtype(config))
    else:
        classifier = from_pretrained(
            AutoModelForSequenceClassification,
            model.path,
            config,
            dropout,
            model.revision,
            model.trust_remote_code,
            num_labels=1,
        )
        classifier.config.pad_token_id = tokenizer.pad_token_id
    init_head(classifier, torch_seed(config.seed, "scorer head"))
    return Scorer(classifier)


def load_scorer(path: str, config: Config, dropout: float) -> Scorer:
    """A trained scorer from a directory or hub id: the reward model, and where the critic starts."""
    from transformers import AutoModelForSequenceClassification

    classifier = from_pretrained(AutoModelForSequenceClassification, path, config, dropout, num_labels=1)
    return Scorer(classifier)


def from_pretrained(
    auto: Any,
    path: str,
    config: Config,
    dropout: float,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **extra: Any,
) -> Any:
    """`auto.from_pretrained` with our number format and dropout; failures name the path."""
    from transformers import AutoConfig

    source = str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        settings = AutoConfig.from_pretrained(source, **options, **extra)
        set_dropout(settings, dropout)
        return auto.from_pretrained(source, config=settings, dtype=dtype(config), **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            "model.path",
            path,
            f"it cannot be loaded ({reason})",
            "give a directory with config.json and weights, or a reachable hub id",
        ) from error


def shape(model: Model, tokenizer: Tokenizer, dropout: float) -> Any:
    """transformers' configuration of a model that is built here with random weights."""
    from transformers import OPTConfig

    settings = OPTConfig(
        vocab_size=model.vocabulary, hidden_size=model.width, num_hidden_layers=model.layers, ffn_dim=model.ffn,
        num_attention_heads=model.heads, max_position_embeddings=model.positions, word_embed_proj_dim=model.embedding,
        do_layer_norm_before=model.norm_first, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id, init_std=INIT_SCALE / math.sqrt(model.width),
    )  # fmt: skip
    set_dropout(settings, dropout)
    return settings


def set_dropout(settings: Any, dropout: float) -> None:
    """Set every dropout that the model's configuration knows."""
    for name in DROPOUTS:
        if hasattr(settings, name):
            setattr(settings, name, dropout if name != "layerdrop" else 0.0)


def dtype(config: Config) -> torch.dtype:
    """The format of weights and activations."""
    return DTYPES[config.precision.dtype]


def prepare_for_training(model: nn.Module, config: Config, checkpointing: bool) -> nn.Module:
    """Add adapters and switch gradient checkpointing as configured."""
    backbone: Any = model.classifier if isinstance(model, Scorer) else model
    if checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    if config.lora.rank > 0:
        adapted = add_adapters(backbone, config.lora, torch_seed(config.seed, "adapters"))
        return Scorer(adapted) if isinstance(model, Scorer) else adapted
    return model
