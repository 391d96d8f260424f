"""Which prompts a decode loop reads together, from their lengths alone: pure, so that the host need not ask the device."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.planner.cache import PREFILL_TOKENS

# Prompts that are read together are of about one length: at least this share of the longest.
ALIKE = 0.75


@dataclass(frozen=True)
class Reading:
    """One pass over prompts: which of the distinct ones, the rows of the cache that they fill, the width of the longest in
    tokens, and whether any is shorter."""

    prompts: slice
    rows: slice
    width: int
    is_padded: bool


def plan_readings(lengths: list[int], owners: list[int], together: bool) -> tuple[list[int], list[Reading]]:
    """Return the first row of each distinct prompt, and the passes that read them, for rows whose prompts have these
    lengths (the longest first); neighbours with equal owners have one prompt. A single pass where ranks go together."""
    first = [row for row, starts in enumerate(starts_prompt(owners)) if starts]
    bounds, own = [*first, len(owners)], [lengths[row] for row in first]
    return first, [
        Reading(part, slice(bounds[part.start], bounds[part.stop]), max(own[part]), min(own[part]) < max(own[part]))
        for part in split_alike(own, together)
    ]


def starts_prompt(owners: list[int]) -> list[bool]:
    """Tell for each row whether its prompt is another than the row's before it."""
    return [row == 0 or owner != owners[row - 1] for row, owner in enumerate(owners)]


def split_alike(lengths: list[int], together: bool) -> Iterator[slice]:
    """Split prompts into consecutive parts of about one length; a single part where ranks go together."""
    start = 0
    for row in range(1, len(lengths) + 1):
        most = row - start >= max(1, PREFILL_TOKENS // lengths[start])
        if row == len(lengths) or (not together and (lengths[row] < ALIKE * lengths[start] or most)):
            yield slice(start, row)
            start = row
