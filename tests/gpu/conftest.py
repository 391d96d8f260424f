"""What needs a GPU: captured graphs, half precision at its bounds, memory that comes back, a step of a 1.3B shape.

    python -m pytest tests/gpu -n 0              # on a machine with a GPU; under eight minutes on an H100, no network
    RLHF_GPU_DRY_RUN=1 python -m pytest tests/gpu -n 0      # the same on the CPU: tiny shapes, plain calls for graphs

Without a GPU all of it is skipped, unless it is to be tried dry. `.ci/gpu` runs these tests, and the benchmarks.
"""

import os
from dataclasses import replace

import pytest

DRY = os.environ.get("RLHF_GPU_DRY_RUN") == "1"


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available() or DRY:
        return
    for item in items:
        if "tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="no GPU here; RLHF_GPU_DRY_RUN=1 tries it on the CPU"))


@pytest.fixture(autouse=True)
def plain_calls_for_graphs(monkeypatch):
    """In a dry run steps are 'captured' as plain calls."""
    import torch

    from rlhf.rollout.hybrid.decoder import Decoder

    if not torch.cuda.is_available():
        monkeypatch.setattr(Decoder, "captures", property(lambda self: self.rollout.graphs and not self.together))
        monkeypatch.setattr(Decoder, "warm_up", Decoder.step)
        monkeypatch.setattr(Decoder, "capture", lambda self, kind: lambda: self.step(kind))


@pytest.fixture
def gpu_config(make_config):
    """`gpu_config(*overrides)`: a configuration for one GPU of whatever kind; dry, for the CPU."""
    import torch

    def make(*overrides):
        if not torch.cuda.is_available():
            return make_config(*(word for word in overrides if not word.startswith("hardware")))
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        config = make_config("hardware=h100", *overrides)
        return replace(config, hardware=replace(config.hardware, gpu=torch.cuda.get_device_name(0), memory_gib=memory))

    return make


@pytest.fixture
def sizes():
    """`sizes(large, tiny)`: the first on a GPU, the second in a dry run."""
    import torch

    return lambda large, tiny: large if torch.cuda.is_available() else tiny


@pytest.fixture(autouse=True)
def emptied():
    """Memory of one test is not that of the next."""
    import gc

    import torch

    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
