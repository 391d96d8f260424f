"""DeepSpeed: engines for the models that learn and for those that do not."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Lora, Training, Zero
from rlhf.models.load import prepare_for_training
from rlhf.models.lora import is_adapter
from rlhf.runtime.compat.deepspeed import (
    has_inference_kernels,
    is_compiled,
    restore_linear,
    skip_lone_reduction,
    whole_shape,
)
from rlhf.runtime.distributed import device, is_main
from rlhf.runtime.ds_config import frozen_settings, hybrid_settings, training_settings


@dataclass(frozen=True)
class TrainingSpec:
    """How a model learns: the stage's optimiser, and what its role has of its own (`lora_key` is the group of `lora`);
    `samples` if rollouts are made with it."""

    training: Training
    batches: Batches
    zero: Zero
    lora: Lora
    learning_rate: float
    weight_decay: float
    checkpointing: bool
    lora_key: str = "lora"
    samples: bool = False


def training_engine(model: nn.Module, config: Config, learning: TrainingSpec) -> Any:
    """Return a DeepSpeed engine that trains `model` with AdamW; `set_rates` sets its learning rates before each update."""
    model = prepare_for_training(model, learning.lora, learning.checkpointing, config.seed, learning.lora_key)
    model.to(device(config))
    settings = training_settings(config, learning.zero, learning.batches, learning.training.max_grad_norm)
    if learning.samples and config.rollout.engine == "deepspeed":
        settings |= hybrid_settings(config)
    engine = initialize(model=model, optimizer=adamw(model, config, learning), config=settings)
    skip_lone_reduction(engine)
    if "hybrid_engine" in settings:
        check_kernels(engine)
    return engine


def check_kernels(engine: Any) -> None:
    """Raise ConfigError where DeepSpeed's hybrid engine has put no kernels in: it would sample by plain generate, and say
    so in a log line only."""
    if not has_inference_kernels(engine):
        problem = f"DeepSpeed {deepspeed.__version__} has no kernels for this model with the installed transformers"
        raise ConfigError("rollout.engine", "deepspeed", problem, "try rollout=hybrid")


def adamw(model: nn.Module, config: Config, learning: TrainingSpec) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices only; DeepSpeed's CPU Adam where the optimiser's state is offloaded from a GPU."""
    training, lora = learning.training, learning.lora
    adapters_rate = learning.learning_rate if lora.learning_rate is None else lora.learning_rate
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = learning.weight_decay if len(whole_shape(parameter)) >= 2 else 0.0
            rate = adapters_rate if is_adapter(name) else learning.learning_rate
            members.setdefault((rate, decay), []).append(parameter)
    groups = [{"params": parameters, "peak": rate, "weight_decay": decay} for (rate, decay), parameters in members.items()]
    options: dict[str, Any] = {"lr": learning.learning_rate, "betas": tuple(training.betas), "eps": training.eps}
    on_gpu = config.hardware.device == "cuda"
    if on_gpu and learning.zero.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        if is_main() and not is_compiled("cpu_adam"):
            print("DeepSpeed compiles its CPU Adam, once on a machine: about a minute", flush=True)
        on_host: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        return on_host
    return torch.optim.AdamW(groups, fused=True, **options)


def frozen_engine(model: nn.Module, config: Config, zero: Zero) -> Any:
    """Return an engine around a model that only reads: sharded at ZeRO stage 3, else whole on each device."""
    model.requires_grad_(False).eval().to(device(config))
    engine = initialize(model=model, config=frozen_settings(config, zero))
    engine.eval()
    return engine


def initialize(**arguments: Any) -> Any:
    """Return a DeepSpeed engine, without what DeepSpeed prints while it is made."""
    with redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(**arguments)
    return engine


def set_rates(engine: Any, factor: float) -> None:
    """Set the learning rates of the next update: this share of each group's peak."""
    for group in engine.optimizer.param_groups:
        group["lr"] = factor * group["peak"]


def backward(engine: Any, loss_sum: Tensor, count: float) -> None:
    """Accumulate the gradient of `loss_sum / count`, both over the *global* batch of an update.

    DeepSpeed averages over ranks and over accumulation steps; the factor undoes that, so that a token weighs the same
    in whatever rank and micro-batch it is.
    """
    engine.backward(loss_sum * (engine.dp_world_size * engine.gradient_accumulation_steps() / count))


def release(*engines: Any) -> None:
    """Free what DeepSpeed holds for engines that are no longer used, and undo what it does to the process at stage 3."""
    for engine in engines:
        engine.destroy()
    restore_linear()
