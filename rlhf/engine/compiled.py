"""torch.compile, layer by layer: short programs, compiled once for all layers that are alike, for any length."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from rlhf.runtime.compat.torch import allow_programs

# Programs per piece of code: a layer is compiled for the actor and the critic, with gradients and without, with adapters
# and without, and where layers differ for each kind.
PROGRAMS = 64


def compile_layers(model: nn.Module) -> None:
    """Let a model's decoder layers be compiled when they are first used."""
    allow_programs(PROGRAMS)
    for layer in max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len):
        layer.compile(dynamic=True)


def run_uncompiled(compiled: bool) -> AbstractContextManager[Any]:
    """Return a context in which layers run as they are written, whether or not they are `compiled`: a cache changes its
    shape at every step of a rollout."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
