"""Low-rank adapters, by PEFT: adding them, and merging them into the weights that are saved."""

from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Lora

PREFIX = "base_model.model."


def add_adapters(model: nn.Module, lora: Lora, seed: int) -> nn.Module:
    """Freeze the model and add trainable adapters to the modules that `lora.target_modules` names; a scorer's head stays
    trainable. Raises ConfigError, with the names there are, for a module that is not there."""
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    everything = lora.target_modules == ["all-linear"]
    missing = [] if everything else [target for target in lora.target_modules if target not in names]
    if missing:
        raise ConfigError(
            "lora.target_modules",
            missing,
            "the model has no such linear layer",
            f"choose among {', '.join(sorted(names))}",
        )
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules="all-linear" if everything else lora.target_modules,
        task_type="SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM",
    )  # fmt: skip
    adapted: nn.Module = get_peft_model(model, settings)
    return adapted


def merged_state(state: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The state of an adapted model as the plain model's: W + alpha / rank * B A in place of W, A and B."""
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        clean = name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        tensor = value
        adapter = name.replace(".base_layer.weight", "")
        if name.endswith(".base_layer.weight") and f"{adapter}.lora_A.default.weight" in state:
            a, b = (state[f"{adapter}.lora_{factor}.default.weight"].float() for factor in "AB")
            tensor = (tensor.float() + lora.alpha / lora.rank * (b @ a)).to(tensor.dtype)
        plain[clean] = tensor
    return plain


def base_model(model: Any) -> Any:
    """The plain model inside an adapted one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
