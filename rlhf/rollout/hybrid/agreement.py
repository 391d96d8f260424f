"""Whether decode steps by a model's weights give what transformers' code gives: looked at once per process and model."""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlhf.models.lora import base_model

# How many rows are compared: [B, V] in float64 is large beside a step's other tensors.
ROWS = 4
# How far logits may lie apart, as a share of their spread in the vocabulary: rounding, in the model's format.
GAPS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass
class Agreement:
    """What is known of a model's decode steps; None: nothing yet."""

    gap: float | None = None
    allowed: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether both ways have been compared."""
        return self.gap is not None

    @property
    def may_read(self) -> bool:
        """Whether the weights alone may be read: they have not been found to give anything else."""
        return self.gap is None or self.gap <= self.allowed

    def confirm(self, logits: Tensor, expected: Tensor) -> bool:
        """Compare logits [B, V] of both ways, of a few rows; warns of those that differ. The host waits for the device."""
        found, wanted = (part[:ROWS].double() for part in (logits, expected))
        spread = (wanted - wanted.mean(-1, keepdim=True)).norm()
        self.gap, self.allowed = float((found - wanted).norm() / spread), GAPS[expected.dtype]
        if not self.may_read:
            problem = f"decode steps are read by transformers' code, slower: by weights they are off by {self.gap:.3g}"
            warnings.warn(problem, stacklevel=2)
        return self.may_read


@cache
def known(settings: str, dtype: torch.dtype, device: str) -> Agreement:
    """Return what is known of models of these settings."""
    return Agreement()


def agreement_of(model: Any) -> Agreement:
    """Return what is known of a model's decode steps in this process."""
    first = next(model.parameters())
    return known(base_model(model).config.to_json_string(), first.dtype, first.device.type)
