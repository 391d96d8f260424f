"""Models, and what they are trained on: shapes, number format, adapters, ZeRO and hardware."""

from dataclasses import dataclass
from typing import Any

from rlhf.config.metadata import COEFFICIENT, RATE, SHARE, WHOLE, Range, above_zero, key

DTYPES = ("fp32", "bf16", "fp16")


@dataclass
class Model:
    """A model's origin and shape. Widths are in elements; `num_parameters` counts the language model, a tied head once."""

    name: str = key(effect="name")
    family: str = key()
    path: str | None = key(content="model")
    revision: str | None = key()
    gguf_file: str | None = key()
    num_hidden_layers: int = key(WHOLE)
    hidden_size: int = key(WHOLE, unit="elements")
    num_attention_heads: int = key(WHOLE)
    num_key_value_heads: int = key(WHOLE)
    head_dim: int = key(WHOLE, unit="elements")
    intermediate_size: int = key(WHOLE, unit="elements")
    gated_mlp: bool = key()
    word_embed_proj_dim: int = key(WHOLE, unit="elements")
    do_layer_norm_before: bool = key()
    vocab_size: int = key(WHOLE)
    max_position_embeddings: int = key(WHOLE, unit="tokens")
    tie_word_embeddings: bool = key()
    num_parameters: int = key(WHOLE)
    trust_remote_code: bool = key()


@dataclass
class Precision:
    """Format of weights and activations: fp32, bf16 or fp16. Losses and log-probabilities are always fp32."""

    dtype: str = key(choices=DTYPES)


@dataclass
class Lora:
    """Low-rank adapters; rank 0 means none. `target_modules` is `auto` or a list of names."""

    rank: int = key(WHOLE, neutral=0)
    alpha: int = key(COEFFICIENT, only_with="rank")
    dropout: float = key(SHARE, only_with="rank")
    target_modules: Any = key(only_with="rank")
    learning_rate: float | None = key(RATE, only_with="rank")
    only: bool = key(only_with="rank")
    save_merged: bool = key(effect="name")


@dataclass
class Zero:
    """DeepSpeed ZeRO: stage 0 to 3, what is kept in host memory, and ZeRO++'s savings of communication."""

    stage: Any = key(choices=(0, 1, 2, 3), auto=True)
    offload_optimizer: Any = key(choices=(False, True), auto=True)
    offload_param: Any = key(choices=(False, True), auto=True)
    reduce_bucket_size: int = key(Range(1, 1e12), unit="elements")
    stage3_param_persistence_threshold: int = key(Range(0, 1e12), unit="elements")
    stage3_max_live_parameters: int = key(Range(1, 1e12), unit="elements")
    zero_quantized_weights: bool = key(effect="result", neutral=False)
    zero_quantized_gradients: bool = key(effect="result", neutral=False)
    zero_hpz_partition_size: int | None = key(WHOLE)


@dataclass
class PeakTflops:
    """Dense peak per GPU, in TFLOP/s; None where the hardware lacks the format."""

    fp32: float = key(above_zero(1e9), unit="TFLOP/s")
    fp16: float | None = key(above_zero(1e9), unit="TFLOP/s")
    bf16: float | None = key(above_zero(1e9), unit="TFLOP/s")


@dataclass
class Hardware:
    """A GPU type, how many of it, and the node around it: GiB, TFLOP/s, GB/s and US dollars per GPU-hour."""

    device: str = key(choices=("cpu", "cuda"))
    gpu: str = key()
    memory_gib: float = key(above_zero(1e9), unit="GiB")
    peak_tflops: PeakTflops = key()
    memory_bandwidth_gb_s: float = key(above_zero(1e9), unit="GB/s")
    link: str = key()
    link_gb_s: float = key(above_zero(1e9), unit="GB/s")
    host_memory_gib: float = key(above_zero(1e9), unit="GiB")
    host_link_gb_s: float = key(above_zero(1e9), unit="GB/s")
    network_gb_s: float = key(above_zero(1e9), unit="GB/s")
    gpus_per_node: int = key(Range(1, 1024))
    nodes: int = key(Range(1, 65536))
    price_per_gpu_hour: float = key(COEFFICIENT, unit="US dollars")
    price_source: str = key(effect="name")
    dtype: str = key(choices=DTYPES)
