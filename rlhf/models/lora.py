"""Low-rank adapters, by PEFT: adding them, finding those of an earlier stage, and merging them into what is saved."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Lora, Zero
from rlhf.models.source import Source

PREFIX = "base_model.model."


def linear_names(model: nn.Module) -> list[str]:
    """The names of linear layers, GPT-2's transposed ones among them, but for a scorer's head."""
    named = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in named if name != "score"]


def target_names(model: Any, lora: Lora, key: str) -> list[str]:
    """The ends of the names of the modules to adapt; `key` is the group of the configuration. Raises ConfigError, with the
    names there are, for one that is not there, and for a head that is the embedding."""
    if lora.target_modules == "auto":
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        return sorted({name.rsplit(".", 1)[-1] for stack in stacks for name in linear_names(stack)})
    names, key = linear_names(model), f"{key}.target_modules"
    for target in lora.target_modules:
        adapted = [name for name in names if f".{name}".endswith(f".{target}")]
        if not adapted:
            fix = f"choose among {', '.join(sorted({name.rsplit('.', 1)[-1] for name in names}))}"
            raise ConfigError(key, target, "the model has no such linear layer", fix)
        embedding = model.get_input_embeddings().weight
        if any(model.get_submodule(name).weight is embedding for name in adapted):
            raise ConfigError(key, target, "this head is the token embedding too", "leave it out")
    return list(lora.target_modules)


def add_adapters(model: Any, lora: Lora, seed: int, key: str = "lora") -> nn.Module:
    """Add trainable adapters to the linear layers that `lora.target_modules` names; a scorer's head stays trainable, the
    rest only if not `lora.only`. `key` is the group of the configuration that `lora` is."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=target_names(model, lora, key),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
    )  # fmt: skip
    adapted: nn.Module = get_peft_model(model, settings)
    if not lora.only:
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(".original_module." not in name)
    return adapted


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """An adapted model's weight as the plain model names it."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def adapter_names(name: str) -> tuple[str, str]:
    """The names of the factors A and B that belong to the weight of a base layer."""
    layer = name.removesuffix(".base_layer.weight")
    return f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool) -> Tensor:
    """W + scale * B A in W's format, added in float32, for a weight [outputs, inputs] or `transposed`."""
    change = scale * (b.float() @ a.float())
    return (weight.float() + (change.T if transposed else change)).to(weight.dtype)


def base_model(model: Any) -> Any:
    """The plain model inside an adapted one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def adapter_base(source: Source) -> Source | None:
    """Where the base model of trained adapters is, if adapters are all that `source` holds."""
    file = Path(source.place) / "adapter_config.json"
    if not file.is_file() or (Path(source.place) / "config.json").is_file():
        return None
    base = json.loads(file.read_text()).get("base_model_name_or_path")
    if not base:
        raise ConfigError(source.key, source.path, "its adapters do not say which model they belong to", "merge them first")
    return Source(str(base), source.key, None, source.trust_remote_code)


def with_adapter(model: nn.Module, source: Source, zero: Zero) -> nn.Module:
    """A model with the adapters at `source` merged into it."""
    from peft import PeftModel

    if zero.stage == 3:
        problem = "adapters cannot be merged into a model that is sharded"
        raise ConfigError(source.key, source.path, problem, "train them with lora.save_merged=true, or use zero=2")
    plain: nn.Module = PeftModel.from_pretrained(model, source.place).merge_and_unload()
    return plain
