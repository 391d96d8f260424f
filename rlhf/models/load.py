"""Building and loading models: the policy (a causal language model) and the scorer (its body with one output).

Under ZeRO stage 3 no process ever holds a whole model: it is built without memory and gets its weights one at a time, each
sharded at once (runtime/sharded.py).
"""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rlhf.catalog.families import FAMILIES
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config, Lora, Model, Zero
from rlhf.data.encoded import Tokenizer
from rlhf.models.adapters import adapter_base
from rlhf.models.attention import extend_attention
from rlhf.models.checkpoint import Checkpoint
from rlhf.models.families import build_hf_config
from rlhf.models.heads import BIAS, SCALE, ScalarHeadModel, classifier_class, head_weights
from rlhf.models.lora import add_adapters, merge_adapters
from rlhf.models.preflight import check_positions
from rlhf.models.quantization import dequantization_options, remove_quantization_marks
from rlhf.models.source import Source, load_hf_config, source_of
from rlhf.runtime.compat.transformers import build_model, is_automatic
from rlhf.runtime.seeds import torch_seed
from rlhf.runtime.sharded import materialize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What configurations call dropout; layers are never dropped whole.
DROPOUTS = (
    "dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "resid_dropout", "embed_dropout", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "classifier_dropout", "summary_first_dropout",
)  # fmt: skip


def new_policy(model: Model, config: Config, tokenizer: Tokenizer, zero: Zero, dropout: float) -> nn.Module:
    """Return the policy that supervised fine-tuning starts from: `model.path`'s weights, or random ones of its shape."""
    if model.path is not None:
        return load_policy(source_of(model, "model"), config, zero, dropout)
    return random_model(causal_class, model_shape(model, tokenizer, dropout), config, zero, "policy weights")


def load_policy(source: Source, config: Config, zero: Zero, dropout: float) -> nn.Module:
    """Return a causal language model from a directory or hub id; trained adapters there are merged into it."""
    base = adapter_base(source)
    if base is None:
        return from_pretrained(causal_class, source, config, zero, dropout)
    return merge_adapters(from_pretrained(causal_class, base, config, zero, dropout), source, zero)


def new_scorer(model: Model, config: Config, tokenizer: Tokenizer, zero: Zero, dropout: float) -> ScalarHeadModel:
    """Return the scorer that reward modelling starts from; its head is drawn from N(0, 1 / (width + 1))."""
    if model.path is not None:
        return scorer_with_new_head(source_of(model, "reward_model"), config, tokenizer, zero, dropout)
    settings = model_shape(model, tokenizer, dropout)
    settings.num_labels = 1
    return ScalarHeadModel(random_model(classifier_class, settings, config, zero, "scorer weights"))


def scorer_with_new_head(
    source: Source, config: Config, tokenizer: Tokenizer, zero: Zero, dropout: float
) -> ScalarHeadModel:
    """Return a scorer whose body is that of the model there, and whose head, bias and scale are new."""
    base = adapter_base(source)
    classifier: Any = from_pretrained(classifier_class, base or source, config, zero, dropout, new_head=True)
    if base is not None:
        copy_body(load_policy(source, config, zero, dropout), classifier)
    settings, pad = classifier.config, int(tokenizer.pad_token_id)
    settings.pad_token_id = pad if pad < settings.get_text_config().vocab_size else None  # else it could not be loaded
    setattr(settings, BIAS, 0.0)
    setattr(settings, SCALE, 1.0)
    return ScalarHeadModel(classifier)


def copy_body(policy: Any, classifier: Any) -> None:
    """Give a classifier the body of a language model of its family, which is on no disk."""
    body = getattr(policy, policy.base_model_prefix)
    getattr(classifier, classifier.base_model_prefix).load_state_dict(body.state_dict())
    classifier.name_or_path = classifier.config.name_or_path = ""


def load_scorer(source: Source, config: Config, zero: Zero, dropout: float) -> ScalarHeadModel:
    """Return a trained scorer from a directory or hub id: the reward model, and where the critic starts."""
    base = adapter_base(source)
    if base is None:
        return ScalarHeadModel(from_pretrained(classifier_class, source, config, zero, dropout))
    classifier = from_pretrained(classifier_class, base, config, zero, dropout, new_head=True)
    return ScalarHeadModel(merge_adapters(classifier, source, zero))


def causal_class(settings: Any) -> Any:
    """Return transformers' language model class of a configuration."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def from_pretrained(
    kind: Callable[[Any], Any], source: Source, config: Config, zero: Zero, dropout: float, new_head: bool = False
) -> nn.Module:
    """Return the model at `source`, of the class that `kind` gives for its configuration, in our number format and dropout;
    `new_head` draws a scorer's head instead of loading it.

    Raises ConfigError, naming the key, for what cannot be loaded, for weights that are missing or that belong to a model of
    another kind, and for too few positions.
    """
    settings = load_hf_config(source)
    check_positions(source, settings, config)
    set_dropout(settings, dropout)
    if kind is classifier_class:
        settings.num_labels = 1
    model_class = kind(settings)
    try:
        if zero.stage == 3 and source.gguf_file is None:
            model, missing, unexpected = load_sharded(model_class, settings, source, config, zero)
        else:
            options = source.options | dequantization_options(source.gguf_file)
            model, report = model_class.from_pretrained(
                source.name_or_path, config=settings, dtype=torch_dtype(config), output_loading_info=True, **options
            )
            remove_quantization_marks(model)
            missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
            if new_head:
                with torch.no_grad():
                    model.score.weight.copy_(draw_head(config, model.score.weight))
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError, UnpicklingError) as error:
        fix = "give a directory with config.json and weights, or a reachable hub id"
        raise ConfigError(source.key, source.path, f"it cannot be loaded ({first_line(error)})", fix) from error
    lacking = sorted(name for name in missing if not (new_head and name.startswith("score.")))
    if lacking:
        problem = f"it has no weights for {', '.join(lacking[:3])}"
        raise ConfigError(source.key, source.path, problem, "give a model of the right kind")
    if any(name.startswith("score.") for name in unexpected):
        raise ConfigError(source.key, source.path, "it is a reward model, not a language model", "give a language model")
    extend_attention(model)
    built: nn.Module = model
    return built


def load_sharded(
    model_class: Any, settings: Any, source: Source, config: Config, zero: Zero
) -> tuple[nn.Module, set[str], set[str]]:
    """Return a model whose weights are read one at a time by rank 0 and sharded at once; and the names of its weights that
    the files lack, and of theirs that it has no place for."""
    checkpoint = Checkpoint(source)
    model = build_on_meta(model_class, settings, config, source.trust_remote_code)
    stored = {name: checkpoint.find(name, model.base_model_prefix) for name, _ in model.named_parameters()}

    def value(name: str, empty: Tensor) -> Tensor:
        found = stored[name]
        if found is not None:
            return checkpoint.read(found, empty)
        return draw_head(config, empty) if name == "score.weight" else torch.zeros_like(empty, device="cpu")

    materialize(model, config, zero, value)
    missing = {name for name, found in stored.items() if found is None}
    return model, missing, checkpoint.names - {found for found in stored.values() if found is not None}


def random_model(kind: Callable[[Any], Any], settings: Any, config: Config, zero: Zero, purpose: str) -> nn.Module:
    """Return a model with random weights. Each weight is drawn from a generator of its own, (seed, purpose, its name), so
    that it is the same however the model is sharded: matrices from the normal distribution of the configuration's
    width, biases 0, norms 1 (or their equal)."""
    model: nn.Module = build_on_meta(kind(settings), settings, config, trust_remote_code=False)
    deviation = getattr(settings, "init_std", None) or settings.initializer_range
    norm = FAMILIES[settings.model_type].initial_norm

    def value(name: str, empty: Tensor) -> Tensor:
        if name == "score.weight":
            return draw_head(config, empty)
        if empty.ndim < 2:
            return torch.full(empty.shape, 0.0 if name.endswith("bias") else norm, dtype=empty.dtype)
        generator = torch.Generator().manual_seed(torch_seed(config.seed, f"{purpose} {name}"))
        drawn: Tensor = torch.randn(empty.shape, generator=generator) * deviation
        return drawn.to(empty.dtype)

    materialize(model, config, zero, value)
    extend_attention(model)
    return model


def build_on_meta(model_class: Any, settings: Any, config: Config, trust_remote_code: bool) -> Any:
    """Return a model without memory for its weights."""
    options = {"trust_remote_code": trust_remote_code} if is_automatic(model_class) else {}
    with torch.device("meta"):
        return build_model(model_class, settings, dtype=torch_dtype(config), **options)


def draw_head(config: Config, empty: Tensor) -> Tensor:
    """Return a new scorer's head."""
    return head_weights(empty.shape, torch_seed(config.seed, "scorer head")).to(empty.dtype)


def model_shape(model: Model, tokenizer: Tokenizer, dropout: float) -> Any:
    """Return transformers' configuration of a model that is built here with random weights."""
    eos = tokenizer.eos_token_id
    settings = build_hf_config(model, pad_token_id=tokenizer.pad_token_id, bos_token_id=eos, eos_token_id=eos)
    set_dropout(settings, dropout)
    return settings


def set_dropout(settings: Any, dropout: float) -> None:
    """Set every dropout that the model's configuration knows."""
    for name in DROPOUTS:
        if hasattr(settings, name):
            setattr(settings, name, dropout)
    if hasattr(settings, "layerdrop"):
        settings.layerdrop = 0.0


def torch_dtype(config: Config) -> torch.dtype:
    """Return the format of weights and activations."""
    return DTYPES[config.precision.dtype]


def prepare_for_training(model: nn.Module, lora: Lora, checkpointing: bool, seed: int, key: str = "lora") -> nn.Module:
    """Add adapters and switch gradient checkpointing as configured; `key` is the group that `lora` is."""
    backbone: Any = model.classifier if isinstance(model, ScalarHeadModel) else model
    if checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone.enable_input_require_grads()
    if lora.rank > 0:
        adapted = add_adapters(backbone, lora, torch_seed(seed, "adapters"), key)
        return ScalarHeadModel(adapted) if isinstance(model, ScalarHeadModel) else adapted
    return model
