"""The numbers that turn operations and bytes into seconds: few, physical, each with its source.

Shares are of a data-sheet figure in conf/hardware. `FITTED` ones were chosen by hand: of six settings
that were tried on all 18 cells of DeepSpeed-Chat's published times (docs/planning.md), the setting whose worst cell is off
by less than 50 %. None belongs to a row; no cell was held out, so other cells may be further off.
`python -m rlhf plan --calibrate outputs/` measures the efficiencies of matrices, memory and decoding, and the times to
launch and to start, on a machine's finished stages.
"""

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import yaml

from rlhf.config.errors import ConfigError


@dataclass(frozen=True)
class Constants:
    """What is assumed of every machine.

    Attributes:
        matmul_efficiency: Share of the peak that products of matrices reach while they run. FITTED; cuBLAS reaches 0.6 to
            0.8 on large square products of an A100 (arXiv 2104.04473, section 5.1, has 0.44 to 0.52 of whole models).
        memory_efficiency: Share of a device's memory bandwidth that element-wise operations reach. FITTED.
        decode_efficiency: Share of a device's memory bandwidth that decoding reaches on weights and cache. FITTED.
        element_passes: Reads and writes of a [tokens, hidden size] tensor in a layer's forward pass: two norms, two
            residuals, the biases, an activation four times as wide, and the products' own inputs and outputs. Counted.
        score_passes: Reads and writes of a [tokens, heads, length] tensor of attention scores in a layer's forward pass
            without a fused kernel: product, mask, softmax in float32, dropout, product. Counted.
        launch_seconds: Time that the host takes to start a layer's kernels in one pass: about 25 of 10 microseconds
            (DeepSpeed#8271: 5 ms for the 24 layers of OPT-1.3B on an H100). A shorter layer takes this long.
        link_efficiency: Share of a link's bandwidth in one direction that collectives reach (NCCL's bus bandwidth on a DGX
            A100 is 235 of 300 GB/s). FITTED within that.
        host_update_gb_s: Memory bandwidth with which a GPU's share of a node's processors updates weights whose optimiser
            state is offloaded: an eighth of the 200 GB/s or so that 16 channels of DDR4-3200 reach.
        startup_seconds: From the start of a stage's processes to its first step, without reading weights: imports,
            communicators, optimisers, kernels that are compiled. Estimated.
        disk_gb_s: What a node reads and writes of a shared file system.
    """

    matmul_efficiency: float = 0.42
    memory_efficiency: float = 0.28
    decode_efficiency: float = 0.33
    element_passes: float = 20.0
    score_passes: float = 8.0
    launch_seconds: float = 250e-6
    link_efficiency: float = 0.70
    host_update_gb_s: float = 25.0
    startup_seconds: float = 20.0
    disk_gb_s: float = 1.0


# Bytes that Adam moves for a weight: master weight, two moments and gradient are read, the first three and a weight in half
# precision written, all but that in float32.
ADAM_BYTES = 28


# On the CPU a start is imports and no more. Measured on the demo (docs/planning.md).
ON_CPU = Constants(startup_seconds=5.0)


@cache
def load_constants(path: str | None, device: str) -> Constants:
    """Return the constants of a device (`cpu` or `cuda`), those that a file of `plan --calibrate` states replaced. Raises
    ConfigError."""
    defaults = ON_CPU if device == "cpu" else Constants()
    if path is None:
        return defaults
    key, fix = "plan.constants", "write it with python -m rlhf plan --calibrate outputs/"
    try:
        given = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(key, path, f"it cannot be read ({type(error).__name__})", fix) from error
    known = {field.name for field in fields(Constants)}
    if not isinstance(given, dict):
        raise ConfigError(key, path, f"it is no mapping of constants: {', '.join(sorted(known))}", fix)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(key, path, f"there is no constant {name}, but {', '.join(sorted(known))}", fix)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(key, path, f"{name} is {value!r}, and should be a number above 0", fix)
    return replace(defaults, **{name: float(value) for name, value in given.items()})
