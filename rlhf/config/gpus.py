"""The GPUs of this machine, counted without torch."""

import ctypes
from pathlib import Path

# The driver's library, on every system that has one; WSL 2 has no files /dev/nvidia0, /dev/nvidia1, ...
LIBRARY = "libnvidia-ml.so.1"
DEVICES = Path("/dev")


def count_gpus() -> int:
    """Count the GPUs by NVML, or, in containers that were given GPUs without it, by their device files."""
    try:
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        return len(list(DEVICES.glob("nvidia[0-9]*")))
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0:  # no driver answers
        return 0
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    return count.value
