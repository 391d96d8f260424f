"""The states of a stage: one vocabulary in the whole package."""

import ast
from pathlib import Path

import pytest

import rlhf
from rlhf.catalog.state import ALIVE, BAD, ENDED, SETTLED, STATES, WRITTEN, most_urgent

ROOT = Path(rlhf.__file__).parent


def named_states():
    """(file, word) of each `Outcome("…")` and each `state="…"`."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = [keyword.value for keyword in node.keywords if keyword.arg == "state"]
                words += node.args[:1] if isinstance(node.func, ast.Name) and node.func.id == "Outcome" else []
                for word in words:
                    if isinstance(word, ast.Constant):
                        yield path.name, word.value


def test_every_state_that_the_package_names_is_in_the_table():
    found = set(named_states())
    assert len(found) > 10
    assert {(file, word) for file, word in found if word not in STATES} <= {
        (file, "reused") for file in ("run.py", "evaluate.py", "scheduler.py")
    }


def test_a_point_is_as_its_most_urgent_stage_is():
    assert most_urgent(["done", "running", "failed", "queued"]) == "failed"
    assert most_urgent(["done", "planned", "queued"]) == "queued"
    assert most_urgent(["what", "done"]) == "done"
    assert most_urgent([]) == "planned"


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_traits_of_a_state_agree(state):
    assert not (state.alive and (state.ended or state.settled or state.bad))
    # Whatever ended without a result needs a look, but for what a search gave up.
    assert state.bad or not state.ended or state.name == "pruned"
    assert state.tone in ("good", "bad", "wait", "plain")
    assert set(ALIVE) <= set(WRITTEN) and set(SETTLED) - {"done"} <= set(ENDED) <= {*BAD, "pruned"}
