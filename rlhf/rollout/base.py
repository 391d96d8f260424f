"""What generation engines take and return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer


@dataclass(frozen=True)
class Responses:
    """Sampled responses: `tokens` [B, R] right-padded with a valid id, `lengths` [B] with end-of-text included, `ended`
    [B] whether end-of-text or a stop text was reached, and the sampler's own log-probabilities [B, R] (float32, nats, with
    the sampling temperature, before penalties, top-k and top-p, 0 on padding)."""

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    logprobs: Tensor


Generate = Callable[[Any, PromptBatch, np.ndarray, Tokenizer, Rollout], Responses]
