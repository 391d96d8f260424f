"""Low-rank adapters, by PEFT: adding them, and merging them into what is loaded or saved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Lora, Zero
from rlhf.experiment.tensor_files import tensor_names
from rlhf.models.source import Source

PREFIX = "base_model.model."


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of linear layers, GPT-2's transposed ones among them, but for a scorer's head."""
    named = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in named if name != "score"]


def target_names(model: Any, lora: Lora, key: str) -> list[str]:
    """Return the ends of the names of the modules to adapt; `key` is the group of the configuration. Raises ConfigError,
    with the names there are, for one that is not there, and for a head that is the embedding."""
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
    """Return the name that the plain model has for a weight of an adapted model."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def adapter_names(name: str) -> tuple[str, str]:
    """Return the names of the factors A and B that belong to the weight of a base layer."""
    layer = name.removesuffix(".base_layer.weight")
    return f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"


def merge_lora_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool) -> Tensor:
    """Return W + scale * B A in W's format, added in float32, for a weight [outputs, inputs] or `transposed`."""
    change = scale * (b.float() @ a.float())
    return (weight.float() + (change.T if transposed else change)).to(weight.dtype)


def base_model(model: Any) -> Any:
    """Return the plain model inside an adapted one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def merge_adapters(model: nn.Module, source: Source, zero: Zero) -> nn.Module:
    """Return a model with the adapters at `source` merged into it, all of whose weights can be trained. Raises ConfigError
    where adapters and model do not fit each other."""
    from peft import PeftModel, get_peft_model_state_dict

    if zero.stage == 3:
        problem = "adapters cannot be merged into a model that is sharded"
        raise ConfigError(source.key, source.path, problem, "train them with lora.save_merged=true, or use zero=2")
    try:
        adapted: Any = PeftModel.from_pretrained(model, source.name_or_path)
        file = Path(source.name_or_path) / "adapter_model.safetensors"
        if file.is_file():
            names = tensor_names(file)
            needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
            foreign = (needed - names) | {name for name in names - needed if is_adapter(name)}
            if foreign:
                raise ValueError(f"{min(foreign)} is in one of them only")
    except (OSError, ValueError, RuntimeError) as error:
        problem = f"its adapters do not fit the model that they name ({first_line(error)})"
        raise ConfigError(source.key, source.path, problem, "give adapters of such a model, or merge them first") from error
    plain: Any = adapted.merge_and_unload()
    plain.requires_grad_(True)  # PEFT has frozen them
    plain.name_or_path = plain.config.name_or_path = ""  # it is nowhere on the disk: no adapters may name it
    merged: nn.Module = plain
    return merged
