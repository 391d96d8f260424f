"""Probes are made from the set's own pairs; RewardBench's files are read and scored as published."""

import math

import numpy as np
import pytest

from rlhf.data.cells import CellError
from rlhf.data.dataset import Comparison, Message
from rlhf.evaluation.reward.probes import make_probes
from rlhf.evaluation.reward.rewardbench import SECTIONS, best_of, read_rewardbench, score_items


def test_each_probe_spoils_the_better_answer():
    talk = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Why?"))
    pairs = [
        Comparison(talk, "One two three. Four five.", "No. Not at all."),
        Comparison(talk, "A second pair of the prompt.", "It is left out."),
        Comparison("How?", "So.", "Not so."),
    ]
    found = list(make_probes(pairs, 10))
    first = {probe.name: probe.worse for probe in found if probe.prompt == talk}
    assert all(probe.better == "One two three. Four five." for probe in found if probe.prompt == talk)
    assert first.pop("polite").startswith("Thank you") and first == {
        "plain": "No. Not at all.",
        "truncated": "One two three.",
        "repeated": "One two three. Four five. One two three. Four five.",
        "empty": "",
        "echoed": "Why?",
        "foreign": "So.",
        "listed": "- No.\n- Not at all.",
    }
    # Half of one word is that word, and one sentence is no list: no probe.
    assert {probe.name for probe in found if probe.prompt == "How?"} == {
        "plain", "repeated", "empty", "echoed", "foreign", "polite",
    }  # fmt: skip
    assert {probe.prompt for probe in make_probes(pairs, 1)} == {talk}


def row(subset, chosen, rejected, number="1"):
    return {"id": number, "prompt": "Why?", "chosen": chosen, "rejected": rejected, "subset": subset}


def score(rows, scores):
    bench = read_rewardbench(rows)
    return score_items(bench.version, bench.items, [np.array(own, dtype=float) for own in scores])


def test_sections_of_rewardbench_weigh_their_subsets():
    rows = [row("math-prm", "a", "b"), row("math-prm", "a", "b"), row("hep-cpp", "a", "b"), row("mt-bench-hard", "a", "b")]
    found = score(rows, [(2, 1), (1, 1), (0, 1), (1, 0)])
    assert found.subsets["math-prm"].mean == 0.5  # a tie is wrong, as in RewardBench
    assert found.sections["Reasoning"].mean == pytest.approx(0.5 * 984 / (984 + 164))
    assert list(found.sections) == ["Chat Hard", "Reasoning"]
    assert found.score is None and "donotanswer" in found.missing
    every = [name for weights in SECTIONS.values() for name in weights for _ in range(2)]
    whole = score([row(name, "a", "b") for name in every], [(1, 0), (0, 1)] * 23)
    assert whole.score.mean == pytest.approx(0.5) and not whole.missing and whole.score.n == 46
    assert sum(map(len, SECTIONS.values())) == 23
    assert sum(n for weights in SECTIONS.values() for n in weights.values()) == 2985 + 984 - 447


def test_the_best_of_four_shares_a_tie():
    assert [best_of(np.array(s)) for s in ([2, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0])] == [1, 0.5, 0.25, 0]
    found = score([row("Math", ["a"], ["b", "c", "d"]), row("Math", ["a"], ["b", "c", "d"])], [(3, 1, 2, 0), (1, 1, 1, 0)])
    assert found.version == 2 and found.subsets["Math"].mean == pytest.approx((1 + 1 / 3) / 2)
    assert found.score is None and found.missing == ["Factuality", "Precise IF", "Safety", "Focus", "Ties"]


def test_the_score_of_ties():
    tied, ref = (["a", "b"], ["x", "y"]), (["a"], ["x", "y"])
    rows = [
        row("Ties", *tied, "tied:1"),
        row("Ties", *ref, "ref:1"),
        row("Ties", *tied, "tied:2"),
        row("Ties", *ref, "ref:2"),
    ]
    # Prompt 1: gaps 3 and 1, spread 2. Prompt 2: gaps -1 and 4, spread 0.
    found = score(rows, [(6, 4, 1, 0), (2, 1, 0), (1, 1, 2, 0), (4, 0, 0)])
    expected = 0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * (math.tanh(1 / 2 - 1) + math.tanh(-math.inf)) / 2
    assert found.subsets["Ties"].mean == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        (row("Math", ["a", "b"], ["c"]), "chosen"),
        (row("Math", "a", ["c", "d"]), "rejected"),
        (row("Math", [], ["c"]), "chosen"),
        (row(None, "a", "b"), "subset"),
    ],
)
def test_a_row_of_another_make_is_refused(cells, column):
    with pytest.raises(CellError) as error:
        read_rewardbench([cells])
    assert error.value.column == column
