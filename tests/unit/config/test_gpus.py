"""GPUs are counted by the driver's library, or, where there is none, by their device files."""

import ctypes
from types import SimpleNamespace

import pytest

from rlhf.config import gpus


@pytest.mark.parametrize(("answers", "count"), [(True, 3), (False, 0)])
def test_gpus_are_counted_by_nvml(monkeypatch, answers, count):
    def device_count(number):
        ctypes.cast(number, ctypes.POINTER(ctypes.c_uint))[0] = 3
        return 0

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0 if answers else 9, nvmlDeviceGetCount_v2=device_count, nvmlShutdown=lambda: 0
    )
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: library)
    assert gpus.count_gpus() == count


def test_without_the_library_device_files_are_counted(monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpus, "LIBRARY", "libnone-of-this-name.so")
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    assert gpus.count_gpus() == 2
