"""A GPU that is none: tensors that say they lie on `cuda:0` while their numbers lie in host memory.

Programs that would run on a GPU run here unchanged, slowly, with a GPU's rules:

    with SimulatedGPU() as gpu:
        move_to_gpu(model)                       # not model.to(): parameters become device tensors, ties are kept
        ids = torch.zeros(2, 3, device=CUDA)     # always with an index: "cuda" alone becomes the meta device
        model(ids)
    gpu.waits          # Counter of (function of rlhf/ that waited, for what)
    gpu.graphs         # captured graphs: their operators (kernels), how often each was replayed
    gpu.launches       # operators that a GPU would launch outside of graphs

What a GPU refuses raises GpuError here: host and device tensors in one operator; a wait for the device or a copy from
pageable memory while a graph is captured; a replay that reads memory which has been freed or moved since; any operator on
memory that was given back; attention kernels outside their conditions; a tensor used on one stream before the other
stream's work on it is done.

What a GPU does not do is not done: a capture computes nothing (what it wrote is put back, what it made is poisoned), and a
replay runs no Python, only the recorded operators on the recorded memory.

Where to read on: tensors.py (the tensor), device.py (an operator's way through the simulation), graphs.py (capture and
replay), streams.py (order of work), kernels.py (attention of CUDA builds), cuda.py (torch.cuda's functions).

Limits. Autograd does not run over device tensors. Memory is not counted, NCCL is not there, and time means nothing. In half
precision rounding follows shapes and kernels: compare two runs on this device, not one here and one on the CPU. torch's CPU
builds switch no CUDA devices, so that the meta device's guard stands in, by a table of torch's own: `needs_gpusim` skips
tests on builds of torch that this was not tried on.
"""

import pytest
import torch
from packaging.version import parse

from support.gpusim.device import SimulatedGPU
from support.gpusim.tensors import CUDA, DeviceTensor, GpuError, move_to_gpu

OLDEST, NEWEST = parse("2.11"), parse("2.14")

needs_gpusim = pytest.mark.skipif(
    not OLDEST <= parse(torch.__version__.partition("+")[0]) < NEWEST or torch.version.cuda is not None,
    reason="the simulated GPU was tried on CPU builds of torch 2.11 to 2.13",
)

__all__ = ["CUDA", "DeviceTensor", "GpuError", "SimulatedGPU", "move_to_gpu", "needs_gpusim"]
