"""DeepSpeed's private names, and its marks on parameters that ZeRO stage 3 shards. Tried on deepspeed 0.19.8."""

import importlib
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.runtime.compat import patched

LINEAR = torch.nn.functional.linear
# The state of fp16's dynamic loss scale (deepspeed/runtime/fp16/loss_scaler.py).
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


# The process.


def share_partition_groups() -> None:
    """Let all models of ZeRO++ use one set of secondary partition groups; DeepSpeed would refuse a second model."""
    from deepspeed.utils import groups

    create = groups._create_zero_param_parallel_group

    def create_once(size: int) -> None:
        if groups._ZERO_PARAM_INTRA_PARALLEL_GROUP is None:
            create(size)

    groups._create_zero_param_parallel_group = create_once


def import_muon() -> None:
    """Import DeepSpeed's optimiser Muon without compiling its kernels, which nothing here uses. DeepSpeed asks of every
    optimiser whether it is a Muon, and would import torch's compiler for these kernels, which takes a second."""
    from deepspeed.runtime import compiler

    with suppress(ImportError), patched(compiler, "compile", lambda: lambda kernel: kernel):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def skip_shared_memory_kernel() -> None:
    """Keep DeepSpeed from compiling a shared-memory all-reduce for the CPU, which takes a minute; gloo does without it."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def is_compiled(operator: str) -> bool:
    """Whether DeepSpeed finds one of its operators (`cpu_adam`) compiled: with the package, or by an earlier process."""
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    files = (path for pattern in ("", "*/") for path in root.glob(f"{pattern}{operator}/*.so"))
    return bool(installed_ops.get(operator)) or next(files, None) is not None


def restore_linear() -> None:
    """Give the process torch's linear function back, in whose place `deepspeed.zero.Init` puts its own."""
    torch.nn.functional.linear = LINEAR


# Parameters that ZeRO stage 3 shards.


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO stage 3 shards a parameter."""
    return hasattr(parameter, "ds_id")


def local_shard(parameter: Any) -> Tensor:
    """Return this rank's part of a parameter: its shard at ZeRO stage 3, else all of it."""
    weight: Tensor = parameter.ds_tensor if is_partitioned(parameter) else parameter
    return weight


def whole_shape(parameter: Any) -> torch.Size:
    """Return the shape of a parameter when it is whole; DeepSpeed leaves an empty tensor in place of a sharded one."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def whole_size(parameter: Any) -> int:
    """Return the number of elements of a parameter when it is whole."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def drop_gathered(parameter: Any) -> None:
    """Free whole copies of a sharded parameter that were made from its former shards."""
    if parameter.ds_status.name == "AVAILABLE":
        parameter.partition()
    if getattr(parameter, "ds_secondary_tensor", None) is not None:
        parameter.ds_secondary_tensor = None


@contextmanager
def held_whole(engine: Any, weights: list[Tensor]) -> Iterator[None]:
    """Let the parameters of an engine of ZeRO stage 3 hold these whole weights meanwhile; no hook of DeepSpeed's gathers
    before a layer or frees after it."""
    parameters: list[Any] = list(engine.module.parameters())
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    shards = [(parameter.data, parameter.ds_status) for parameter in parameters]
    offload._remove_module_hooks()
    offload.forward_hooks, offload.backward_hooks = [], []
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data, parameter.ds_status = weight, type(parameter.ds_status).AVAILABLE
    try:
        yield
    finally:
        for parameter, (shard, status) in zip(parameters, shards, strict=True):
            parameter.data, parameter.ds_status = shard, status
        offload.setup_zero_stage3_hooks()


# The optimizer's state.


def master_weights(engine: Any) -> list[Tensor]:
    """Return the tensors that the optimizer steps on: at ZeRO 1 to 3 this rank's flat float32 parts, else parameters."""
    for attribute in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if hasattr(engine.optimizer, attribute):
            return list(getattr(engine.optimizer, attribute))
    return [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]


def optimizer_moments(engine: Any) -> dict[Tensor, dict[str, Any]]:
    """Return the state that AdamW keeps of each of `master_weights`."""
    wrapped = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments: dict[Tensor, dict[str, Any]] = wrapped.state
    return moments


def steps_on_copies(engine: Any) -> bool:
    """Whether the optimizer steps on float32 copies of the weights."""
    return hasattr(engine.optimizer, "optimizer")


def loss_scale_state(engine: Any) -> dict[str, float]:
    """Return the state of fp16's dynamic loss scale; empty in other formats."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: float(getattr(scaler, key)) for key in LOSS_SCALE if hasattr(scaler, key)}


def restore_loss_scale(engine: Any, state: dict[str, float]) -> None:
    """Put the state of fp16's dynamic loss scale back; entries that this engine has no use for are ignored."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, value in state.items():
        if hasattr(scaler, key):
            setattr(scaler, key, value if key == "cur_scale" else int(value))


# The gradient's norm.


@dataclass(frozen=True)
class Gradient:
    """The norm of an accumulated gradient over all ranks, without its loss scale; and DeepSpeed's own result, `raw`: a
    number, one per parameter group, loss scale included, or at ZeRO stage 0 a scalar on the device."""

    norm: float
    raw: Any


def skip_lone_reduction(engine: Any) -> None:
    """Let an engine of one rank at ZeRO stage 0 leave its gradients where they are. DeepSpeed would copy all of them into a
    buffer, sum the buffer over that rank, and copy them back."""
    if engine.dp_world_size == 1 and int(engine.zero_optimization_stage()) == 0:
        engine.enable_backward_allreduce = False


def fill_gradients(engine: Any) -> None:
    """Give zeros as a gradient to parameters that no loss has reached, where no reduction has done so: AdamW decays them
    too, on one rank as on several."""
    if not engine.enable_backward_allreduce:
        for parameter in engine.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def measure_gradient(engine: Any) -> Gradient:
    """Compute the norm of the accumulated gradient. All ranks must call this."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):  # ZeRO 1 and 2
        norm = optimizer.scaled_global_norm()
        return Gradient(float(norm) / float(optimizer.loss_scale), norm)
    if hasattr(optimizer, "_get_norm_groups"):  # ZeRO 3
        groups = optimizer._get_norm_groups()
        numbers = [float(norm) for norm in groups]
        whole = math.hypot(*numbers) if min(numbers) >= 0 else math.nan  # DeepSpeed says -1 for what is not finite
        return Gradient(whole / float(optimizer.loss_scale), groups)
    # Stage 0: gradients are alike on all ranks. The sums are those of DeepSpeed's clip_grad_norm_.
    norms = [gradient.float().norm(2.0) for gradient in averaged_gradients(engine)]
    norm = torch.stack(norms).pow(2).sum().pow(0.5)
    return Gradient(float(norm), norm)


def averaged_gradients(engine: Any) -> list[Tensor]:
    """Return the gradients of an engine at ZeRO stage 0."""
    return [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]


def clip_gradient(engine: Any, gradient: Gradient) -> None:
    """Clip the gradient at ZeRO stage 0 by the norm that was measured, as DeepSpeed does by one that it measures again; one
    that is clearly shorter than the bound is left as it is."""
    longest = float(engine.gradient_clipping())
    if gradient.norm > 0.999 * longest:
        scale = (gradient.raw.new_tensor(longest) / (gradient.raw + 1e-6)).clamp(max=1.0)
        for part in averaged_gradients(engine):
            part.mul_(scale)


@contextmanager
def with_cached_grad_norm(engine: Any, gradient: Gradient, skip_update: bool) -> Iterator[None]:
    """Let the optimizer's step() reuse the norm that was measured. To skip an update, NaN is reported: DeepSpeed then
    clears the gradient and leaves the weights alone, as on an overflow of its own."""
    optimizer = engine.optimizer
    with ExitStack() as stack:
        if hasattr(optimizer, "scaled_global_norm"):
            norm = gradient.raw * math.nan if skip_update else gradient.raw
            stack.enter_context(patched(optimizer, "scaled_global_norm", lambda: norm))
        elif hasattr(optimizer, "_get_norm_groups"):
            groups = [norm * math.nan for norm in gradient.raw] if skip_update else gradient.raw
            stack.enter_context(patched(optimizer, "_get_norm_groups", lambda: groups))
        elif skip_update:
            engine.module.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient
            stack.enter_context(patched(engine, "clip_fp32_gradients", lambda: None))
        else:
            stack.enter_context(patched(engine, "clip_fp32_gradients", lambda: clip_gradient(engine, gradient)))
        yield


# The hybrid engine.


def has_inference_kernels(engine: Any) -> bool:
    """Whether DeepSpeed's hybrid engine has put its inference kernels into an engine's model."""
    return bool(getattr(engine, "_inference_containers", None))
