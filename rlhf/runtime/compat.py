"""Changes to what DeepSpeed does by its private names. Tried on deepspeed 0.19.8."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any


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

    with contextlib.suppress(ImportError), patched(compiler, "compile", lambda: lambda kernel: kernel):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module or an object another value inside the context."""
    is_own, former = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, former)
        else:
            delattr(owner, name)
