"""DeepSpeed: engines for the models that learn and for those that do not."""

import math
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from rlhf.config.derive import Batches
from rlhf.config.schema import Config, Training
from rlhf.engine.distributed import device
from rlhf.models.load import prepare_for_training


def deepspeed_config(config: Config, batches: Batches, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration for a model that learns."""
    zero = config.zero
    settings: dict[str, Any] = {
        "train_batch_size": batches.ranks * batches.micro * batches.accumulation,
        "train_micro_batch_size_per_gpu": batches.micro,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **number_format(config),
    }
    settings["zero_optimization"] = {
        "stage": zero.stage,
        "stage3_param_persistence_threshold": zero.persistence_elements,
        "overlap_comm": config.hardware.device == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_bucket_size": zero.bucket_elements,
    }
    if zero.offload_optimizer:
        settings["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": config.hardware.device == "cuda",
        }
    if zero.offload_parameters:
        settings["zero_optimization"]["offload_param"] = {
            "device": "cpu",
            "pin_memory": config.hardware.device == "cuda",
        }
    return settings


def number_format(config: Config) -> dict[str, Any]:
    """DeepSpeed's entries for bf16 and fp16. The window of the fp16 loss scale is DeepSpeed-Chat's."""
    if config.precision.dtype == "bf16":
        return {"bf16": {"enabled": True}}
    if config.precision.dtype == "fp16":
        return {"fp16": {"enabled": True, "loss_scale_window": 100}}
    return {}


def training_engine(model: nn.Module, config: Config, training: Training, batches: Batches, weight_decay: float) -> Any:
    """A DeepSpeed engine that trains `model` with AdamW; its learning rate is set before each update."""
    model = prepare_for_training(model, config, training.gradient_checkpointing)
    model.to(device(config))
    optimizer = adamw(model, config, training, weight_decay)
    settings = deepspeed_config(config, batches, training.max_grad_norm)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def adamw(model: nn.Module, config: Config, training: Training, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices only; DeepSpeed's CPU Adam where the optimiser's state is offloaded from a GPU."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": training.learning_rate, "betas": tuple(training.betas), "eps": training.eps}
    on_gpu = config.hardware.device == "cuda"
    if on_gpu and config.zero.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        on_host: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
        return on_host
    return torch.optim.AdamW(groups, fused=on_gpu, **options)


def frozen_engine(model: nn.Module, config: Config) -> Any:
    """An engine around a model that only reads: sharded like the others at ZeRO stage 3, else whole on each device."""
    model.requires_grad_(False).eval().to(device(config))
    zero: dict[str, Any] = {
        "stage": 3 if config.zero.stage == 3 else 0,
        "stage3_param_persistence_threshold": config.zero.persistence_elements,
    }
    if config.zero.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.hardware.device == "cuda"}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        **number_format(config),
    }
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()
    return engine


def set_learning_rate(engine: Any, rate: float) -> None:
    """The rate of the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def backward(engine: Any, loss_sum: Tensor, count: float, batches: Batches) -> None:
    """Accumulate the gradient of `loss_sum / count`, both over the *global* batch of an update.

    DeepSpeed averages over ranks and over accumulation steps; the factor undoes that, so that a token weighs the same
    in whatever rank and micro-batch it is.
    """
    engine.backward(loss_sum * (batches.ranks * batches.accumulation / count))


def step(engine: Any) -> float | None:
    """End a micro-step; after the last one of an update its gradient norm (before clipping, all ranks), else None."""
    boundary = engine.is_gradient_accumulation_boundary()
    norm = plain_norm(engine) if boundary and not hasattr(engine.optimizer, "_global_grad_norm") else None
    engine.step()
    if not boundary:
        return None
    if norm is None:
        norm = engine.get_global_grad_norm()
    return float(norm) if norm is not None else math.nan


def plain_norm(engine: Any) -> Tensor:
    """The gradient norm where DeepSpeed keeps none: fp32 at stage 0, whose gradients are averaged already."""
    return torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])


def gathered_state(engine: Any) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, one gathered at a time; an empty dict on the other ranks."""
    main = engine.global_rank == 0
    state: dict[str, Tensor] = {}
    for name, tensor in engine.module.state_dict(keep_vars=True).items():
        partitioned = [tensor] if hasattr(tensor, "ds_id") else []
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            if main:
                state[name] = tensor.detach().cpu().clone()
    return state


def release(*engines: Any) -> None:
    """Free what DeepSpeed holds for engines that are no longer used."""
    for engine in engines:
        engine.destroy()
