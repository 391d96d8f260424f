"""Half precision where it runs: DeepSpeed trains in fp16 on CPUs that have instructions for it, and on no others."""

import pytest
import torch

HAS_FP16 = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
needs_fp16 = pytest.mark.skipif(not HAS_FP16, reason="this CPU does not train in fp16")


def fp16_case(*values, marks=()):
    """A case of `parametrize` that trains in fp16."""
    return pytest.param(*values, marks=(needs_fp16, *marks))
