"""DeepSpeed's configuration: what it is told for a model that learns and for one that does not."""

from typing import Any

from rlhf.config.derive import Batches
from rlhf.config.schema import Config, Zero

# DeepSpeed's own throughput timer waits for the device at every forward pass, which no CUDA graph may hold. What it tells,
# rlhf/tracking/throughput.py tells too.
UNTIMED = {"steps_per_print": 10**9, "timers": {"throughput": {"enabled": False}}}


def training_settings(config: Config, zero: Zero, batches: Batches, max_grad_norm: float) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a model that learns. In half precision stage 0 is run as stage 1: DeepSpeed
    0.19's optimiser for stage 0 takes a step on no gradient when it is made, and divides by a loss scale that the loss was
    never multiplied by."""
    optimization = zero_settings(zero, config)
    if config.precision.dtype != "fp32":
        optimization["stage"] = max(1, zero.stage)
    return {
        "train_batch_size": batches.ranks * batches.micro * batches.accumulation,
        "train_micro_batch_size_per_gpu": batches.micro,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **UNTIMED,
        "zero_optimization": optimization,
        **number_format(config),
    }


def hybrid_settings(config: Config) -> dict[str, Any]:
    """DeepSpeed's entry for its hybrid engine: kernels with room for the longest prompt and response, and at ZeRO stage 3
    weights that are gathered once per rollout unless rollout.gather says layer by layer."""
    rollout = config.rollout
    tokens = config.data.max_prompt_tokens + rollout.max_new_tokens
    return {
        "hybrid_engine": {
            "enabled": True,
            "max_out_tokens": tokens,
            "release_inference_cache": rollout.release_cache,
            "pin_parameters": rollout.gather != "layers",
        }
    }


def frozen_settings(config: Config, zero: Zero) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a model that only reads: sharded at stage 3, else whole on each device."""
    settings = zero_settings(zero, config)
    settings["stage"] = 3 if zero.stage == 3 else 0
    settings.pop("offload_optimizer", None)
    return {
        "train_micro_batch_size_per_gpu": 1,
        **UNTIMED,
        "zero_optimization": settings,
        **number_format(config),
    }


def zero_settings(zero: Zero, config: Config) -> dict[str, Any]:
    """Return DeepSpeed's entry `zero_optimization`."""
    on_gpu = config.hardware.device == "cuda"
    settings: dict[str, Any] = {
        "stage": zero.stage,
        "stage3_param_persistence_threshold": zero.stage3_param_persistence_threshold,
        "sub_group_size": zero.reduce_bucket_size,
        "stage3_max_live_parameters": zero.stage3_max_live_parameters,
        "stage3_max_reuse_distance": zero.stage3_max_live_parameters,
        "stage3_prefetch_bucket_size": min(zero.reduce_bucket_size, zero.stage3_max_live_parameters),
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": zero.reduce_bucket_size,
        "allgather_bucket_size": zero.reduce_bucket_size,
    }
    if zero.offload_optimizer:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if zero.offload_param:
        settings["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    if zero.zero_hpz_partition_size is not None:
        settings["zero_hpz_partition_size"] = zero.zero_hpz_partition_size
    if zero.zero_quantized_weights:
        settings["zero_quantized_weights"] = True
    if zero.zero_quantized_gradients:
        settings["zero_quantized_gradients"] = True
    return settings


def number_format(config: Config) -> dict[str, Any]:
    """DeepSpeed's entries for bf16 and fp16: an update whose gradient is not finite is left out, in bf16 too. The window of
    the fp16 loss scale is DeepSpeed-Chat's."""
    if config.precision.dtype == "bf16":
        return {"bf16": {"enabled": True, "check_grad_overflow": True}}
    if config.precision.dtype == "fp16":
        return {"fp16": {"enabled": True, "loss_scale_window": 100}}
    return {}
