"""Random streams. Each belongs to a purpose, a step and, where it matters, a sample: never to a rank or a batch."""

import zlib

import numpy as np


def random_stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator of its own for (seed, purpose, numbers)."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers]))


def torch_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed for torch.manual_seed from the same source."""
    return int(random_stream(seed, purpose, *numbers).integers(2**63))


def uniforms(seed: int, purpose: str, step: int, samples: list[int], length: int) -> np.ndarray:
    """Draw numbers in [0, 1), [B, length] in float32: row b belongs to sample `samples[b]`, and is the same in whatever
    batch it is drawn."""
    return np.stack([random_stream(seed, purpose, step, sample).random(length, dtype=np.float32) for sample in samples])
