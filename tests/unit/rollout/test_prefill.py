"""Which prompts are read together, by their lengths."""

from hypothesis import given
from hypothesis import strategies as st

from rlhf.planner.cache import PREFILL_TOKENS
from rlhf.rollout.hybrid.prefill import ALIKE, plan_readings


@given(lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=12), copies=st.integers(1, 4), together=st.booleans())
def test_each_prompt_is_read_once_into_its_rows(lengths, copies, together):
    prompts = sorted(lengths, reverse=True)
    rows = [length for length in prompts for _ in range(copies)]
    first, readings = plan_readings(rows, [row // copies for row in range(len(rows))], together)
    assert [rows[row] for row in first] == prompts
    read = [number for reading in readings for number in range(reading.prompts.start, reading.prompts.stop)]
    filled = [row for reading in readings for row in range(reading.rows.start, reading.rows.stop)]
    assert read == list(range(len(prompts))) and filled == list(range(len(rows)))
    assert len(readings) == 1 or not together
    for reading in readings:
        own = prompts[reading.prompts]
        assert reading.width == own[0] and reading.is_padded == (own[-1] < own[0])
        assert together or len(own) == 1 or (own[-1] >= ALIKE * own[0] and len(own) * own[0] <= PREFILL_TOKENS)
