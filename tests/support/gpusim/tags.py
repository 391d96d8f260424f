"""Which waits an update has: autograd does not run over device tensors, so that here host tensors are known for the GPU's
by their memory."""

from collections import Counter
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from support.gpusim.device import INDEXED, NUMBERS, caller, name_of
from support.gpusim.tensors import memory_of, tensors_in


class TaggedWaits(TorchDispatchMode):
    """Counts where the host would wait, while it is entered, if these tensors, and all that is made of them, were a
    GPU's."""

    def __init__(self, *tensors):
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.tagged = {memory_of(tensor): StorageWeakRef(tensor.untyped_storage()) for tensor in tensors}

    def __enter__(self):
        def tolist(tensor):
            if self.holds(tensor):
                self.waits[caller(), "copy to the host"] += 1
            return plain(tensor)

        plain = torch.Tensor.tolist  # which reads a host tensor without an operator
        self.patch = mock.patch.object(torch.Tensor, "tolist", tolist)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *exc):
        self.patch.stop()
        return super().__exit__(*exc)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = tensors_in((args, kwargs or {}))
        theirs = any(self.holds(tensor) for tensor in given)
        indices = tensors_in(args[1]) if func in INDEXED else []
        by_mask = any(index.dtype == torch.bool for index in indices) and not (len(args) > 2 and args[2].numel() == 1)
        if theirs and (func in NUMBERS or by_mask):
            self.waits[caller(), name_of(func)] += 1
        out = func(*args, **(kwargs or {}))
        if theirs and func not in NUMBERS - {torch.ops.aten.nonzero.default}:
            for tensor in tensors_in(out):
                self.tagged.setdefault(memory_of(tensor), StorageWeakRef(tensor.untyped_storage()))
        return out

    def holds(self, tensor):
        """Whether a tensor's memory is the GPU's: that of an index alone is not."""
        return memory_of(tensor) in self.tagged
