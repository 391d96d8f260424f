"""Warm workers on a GPU: what the process that they are forked from imports leaves the GPU alone."""

import os
import subprocess
import sys

from support.command import ROOT

# The module prints nothing from then on, so that the exit code tells.
FORK = """
import os, sys
import rlhf.launch.preload
import torch
from rlhf.runtime.compat.torch import is_forked_from_cuda
if (child := os.fork()) == 0:
    os._exit(2 if is_forked_from_cuda() else int(torch.zeros(3, device=sys.argv[1]).sum()))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_is_forked_after_all_imports_can_use_the_gpu(gpu_config):
    device = gpu_config().hardware.device
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "DS_ACCELERATOR": device}
    done = subprocess.run([sys.executable, "-c", FORK, device], check=False, env=environment, timeout=140)
    assert done.returncode == 0
