"""Which cases of a test run whenever tests run, and which in CI alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Return the parameters of a test, of which all but the `quick` ones are marked as slow. Raises ValueError for a quick
    case that is none of them."""
    cases = list(cases)
    if unknown := [case for case in quick if case not in cases]:
        raise ValueError(f"no cases of the test: {unknown}")
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
