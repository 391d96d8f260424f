"""What is counted while data is tokenised: records read, kept and dropped, cut responses, and lengths."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Bars of a histogram of lengths.
BINS = 40
# The reasons why records are dropped while they are encoded.
TOO_LONG, SAME_TEXT = "too long", "chosen = rejected"


@dataclass(frozen=True)
class Counted:
    """Counts of the data of a stage.

    Attributes:
        read: Rows that hold no record of it, and records.
        kept: Records that the stage reads.
        dropped: How many of the others there are, by the reason.
        cut: Responses that data.max_response_tokens cuts.
        tokens: Median, 95 % quantile and maximum of the lengths of prompts and of responses, in tokens.
        histogram: How many prompts and responses have a length, in steps of `histogram["width"]` tokens from 0.
        items: What an epoch has: records, or, where pairs are grouped, prompts with pairs.
        ties: Pairs whose two responses have the same tokens.
    """

    read: int
    kept: int
    dropped: dict[str, int]
    cut: int
    tokens: dict[str, dict[str, float]]
    histogram: dict[str, Any]
    items: int
    ties: int = 0


@dataclass
class Tally:
    """Counts records while they are encoded. `prompts` and `responses` are their lengths in tokens."""

    dropped: Counter[str] = field(default_factory=Counter)
    prompts: "array[int]" = field(default_factory=lambda: array("l"))
    responses: "array[int]" = field(default_factory=lambda: array("l"))
    kept: int = 0
    cut: int = 0
    ties: int = 0

    def finish(self, left_out: Mapping[str, int], items: int) -> Counted:
        """Return the counts of records, `left_out` of which were none or belonged to no stage."""
        dropped = {**left_out, **self.dropped}
        lengths = {"prompt": np.array(self.prompts), "response": np.array(self.responses)}
        longest = max((int(found.max()) for found in lengths.values() if len(found)), default=0)
        width = longest // BINS + 1
        histogram: dict[str, Any] = {"width": width}
        for name, found in lengths.items():
            histogram[name] = np.bincount(found // width, minlength=longest // width + 1).tolist() if len(found) else []
        tokens = {name: summarize_lengths(found) for name, found in lengths.items()}
        read = self.kept + sum(dropped.values())
        return Counted(read, self.kept, dropped, self.cut, tokens, histogram, items, self.ties)


def summarize_lengths(lengths: np.ndarray) -> dict[str, float]:
    """Return median, 95 % quantile and maximum of lengths; 0 where there are none."""
    if not len(lengths):
        return {"median": 0, "p95": 0, "max": 0}
    median, p95 = (float(np.quantile(lengths, share)) for share in (0.5, 0.95))
    return {"median": median, "p95": p95, "max": int(lengths.max())}
