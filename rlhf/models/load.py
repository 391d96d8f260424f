"""Building and loading models: the policy (a causal language model) and the scorer (its body with one output)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from rlhf.config.derive import max_sequence
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config, Model
from rlhf.data.streams import torch_seed
from rlhf.data.tokens import Tokenizer
from rlhf.models.heads import Scorer, init_head
from rlhf.models.lora import add_adapters
from rlhf.models.tokenizer import expanded

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


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a directory or hub id, and the key of the configuration that names it."""

    path: str
    key: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def place(self) -> str:
        """The directory with ~ expanded, or the hub id."""
        return expanded(self.path)


def source(model: Model, key: str) -> Source:
    """The source of `model.path` or `reward_model.path`."""
    return Source(str(model.path), f"{key}.path", model.revision, model.trust_remote_code)


def new_policy(model: Model, config: Config, tokenizer: Tokenizer, dropout: float) -> nn.Module:
    """The policy that supervised fine-tuning starts from: `model.path`'s weights, or random ones of its shape."""
    from transformers import AutoModelForCausalLM

    if model.path is not None:
        return load_policy(source(model, "model"), config, dropout)
    torch.manual_seed(torch_seed(config.seed, "policy weights"))
    policy: nn.Module = AutoModelForCausalLM.from_config(shape(model, tokenizer, dropout), dtype=dtype(config))
    return policy


def load_policy(source: Source, config: Config, dropout: float) -> nn.Module:
    """A causal language model from a directory or hub id."""
    from transformers import AutoModelForCausalLM

    policy: nn.Module = from_pretrained(AutoModelForCausalLM, source, config, dropout)
    return policy


def new_scorer(model: Model, config: Config, tokenizer: Tokenizer, dropout: float) -> Scorer:
    """The scorer that reward modelling starts from; its head is drawn from N(0, 1 / (width + 1))."""
    from transformers import AutoModelForSequenceClassification as Classifier

    torch.manual_seed(torch_seed(config.seed, "scorer weights"))
    if model.path is None:
        settings = shape(model, tokenizer, dropout)
        settings.num_labels = 1
        classifier = Classifier.from_config(settings, dtype=dtype(config))
    else:
        classifier = from_pretrained(
            Classifier, source(model, "reward_model"), config, dropout, new=("score.",), num_labels=1
        )
        classifier.config.pad_token_id = tokenizer.pad_token_id
    init_head(classifier, torch_seed(config.seed, "scorer head"))
    return Scorer(classifier)


def load_scorer(source: Source, config: Config, dropout: float) -> Scorer:
    """A trained scorer from a directory or hub id: the reward model, and where the critic starts."""
    from transformers import AutoModelForSequenceClassification

    return Scorer(from_pretrained(AutoModelForSequenceClassification, source, config, dropout, num_labels=1))


def from_pretrained(
    auto: Any, source: Source, config: Config, dropout: float, new: tuple[str, ...] = (), **extra: Any
) -> Any:
    """`auto.from_pretrained` with our number format and dropout.

    Raises ConfigError, naming the key, for what cannot be loaded, for weights that are missing (but for those whose name
    begins as one of `new`) or that belong to a model of another kind, and for too few positions.
    """
    from transformers import AutoConfig

    options = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        settings = AutoConfig.from_pretrained(source.place, **options, **extra)
        set_dropout(settings, dropout)
        model, report = auto.from_pretrained(
            source.place, config=settings, dtype=dtype(config), output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        fix = "give a directory with config.json and weights, or a reachable hub id"
        raise ConfigError(source.key, source.path, f"it cannot be loaded ({reason})", fix) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(new or ("\0",)))
    if missing:
        raise ConfigError(
            source.key, source.path, f"it has no weights for {', '.join(missing[:3])}", "give a model of the right kind"
        )
    if any(name.startswith("score.") for name in report["unexpected_keys"]):
        raise ConfigError(source.key, source.path, "it is a reward model, not a language model", "give a language model")
    positions = getattr(settings, "max_position_embeddings", None)
    if positions is not None and positions < max_sequence(config):
        problem = f"it has {positions} positions, but prompt and response reach {max_sequence(config)} tokens"
        raise ConfigError(source.key, source.path, problem, "lower data.max_prompt_tokens or the response lengths")
    return model


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
