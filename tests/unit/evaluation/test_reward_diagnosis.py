"""The diagnosis of a reward model, from scores that are given."""

from dataclasses import replace

import numpy as np
import pytest

from rlhf.data.dataset import Comparison
from rlhf.evaluation.reward.diagnosis import diagnose
from rlhf.evaluation.reward.probes import make_probes
from rlhf.evaluation.reward.texts import ReadTexts, collect_texts

PAIRS = [
    Comparison("p1", "long good", "bad", 2.0, {"source": "web"}),
    Comparison("p2", "good", "long bad", 1.0, {"source": "web"}),
    Comparison("p3", "good", "bad", 1.0, {"source": "book"}),
    Comparison("p4", "good", "good", 1.0, {"source": "book"}),
    Comparison("p5", "lost", "bad", 1.0, {"source": "book"}),
]
# By the text of the response: this model likes length.
SCORES = {"long good": 2.0, "good": 0.0, "long bad": 1.0, "bad": 0.0}


def read(members, scales=(1.0,), texts=None):
    texts = texts or collect_texts(PAIRS)
    found = np.array([[member.get(response, 0.0) for _, response in texts] for member in members])
    reasons = ["too long" if response == "lost" else "" for _, response in texts]
    found[:, [number for number, reason in enumerate(reasons) if reason]] = np.nan
    lengths = np.array([len(response.split()) for _, response in texts], dtype=float)
    places = {text: number for number, text in enumerate(texts)}
    return ReadTexts(places, found, np.array(scales), lengths, lengths > 9, reasons)


def test_accuracy_by_length_margin_and_subset():
    found = diagnose(read([SCORES]), PAIRS)
    assert found.counts == {"pairs": 3, "responses cut": 0, "chosen = rejected": 1, "too long": 1}  # none is dropped unsaid
    means = {name: (estimate.mean, estimate.n) for name, estimate in found.metrics.items() if name.startswith("accuracy")}
    assert means == {
        "accuracy": (0.5, 3),  # right, wrong, a tie
        "accuracy/chosen=longer": (1.0, 1),
        "accuracy/chosen=shorter": (0.0, 1),
        "accuracy/chosen=same": (0.5, 1),
        "accuracy/margin=1": (0.25, 2),
        "accuracy/margin=2": (1.0, 1),
    }
    assert found.metrics["ties"].mean == pytest.approx(1 / 3)
    assert found.metrics["correlation/length"].mean > 0.9
    six = [Comparison(f"{pair.prompt}{n}", *("good", "bad", 1.0, pair.meta)) for n in range(2) for pair in PAIRS[:3]]
    by_source = diagnose(read([SCORES], texts=collect_texts(six)), six).metrics
    assert by_source["accuracy/source=web"].n == 4 and by_source["accuracy/source=book"].n == 2


def test_calibration_is_that_of_the_scores_that_were_trained():
    plain, scaled = diagnose(read([SCORES]), PAIRS), diagnose(read([{k: v / 4 for k, v in SCORES.items()}], (4.0,)), PAIRS)
    for name in ("loss", "brier", "ece"):
        assert scaled.metrics[name].mean == pytest.approx(plain.metrics[name].mean)
    assert scaled.metrics["margin"].mean == pytest.approx(plain.metrics["margin"].mean / 4)
    assert plain.metrics["loss"].mean == pytest.approx(np.logaddexp(0, [-2.0, 1.0, 0.0]).mean())


def test_an_ensemble_disagrees():
    other = {**SCORES, "long bad": -1.0}
    found = diagnose(read([SCORES, other], (1.0, 1.0)), PAIRS).metrics
    assert (found["accuracy/member=1"].mean, found["accuracy/member=2"].mean) == (0.5, pytest.approx(2.5 / 3))
    assert found["disagreement/pairs"].mean == pytest.approx(1 / 3)
    assert found["disagreement"].mean == pytest.approx(1 / 6) and found["disagreement"].n == 6  # one of six by 1
    assert "disagreement" not in diagnose(read([SCORES]), PAIRS).metrics


@pytest.mark.parametrize("unknown", [0.0, float("nan")])
def test_gold_judges_model_and_labels(unknown):
    def gold(prompt, response):
        return {"p1": unknown, "p2": 1.0, "p3": -1.0}[prompt] * ("good" in response)

    found = diagnose(read([SCORES]), PAIRS, gold=gold).metrics
    assert (found["accuracy_gold"].mean, found["accuracy_gold"].n) == (0.25, 2)  # wrong, and a tie; p1 is not told apart
    assert found["labels_gold"].mean == 0.5


def test_log_probabilities_are_correlated_where_they_are_known():
    texts = collect_texts(PAIRS)
    logprobs = np.array([-5.0 * len(response.split()) for _, response in texts])
    found = diagnose(read([SCORES]), PAIRS, logprobs=(logprobs, np.full(len(texts), 2.0))).metrics
    assert found["correlation/logprob"].mean == pytest.approx(-found["correlation/length"].mean)


def test_probes_count_how_often_the_worse_answer_wins():
    pairs = PAIRS[:3]
    probes = list(make_probes(pairs, 3))
    texts = collect_texts(pairs, probes)
    by_length = {response: float(len(response)) for _, response in texts}
    found = diagnose(read([by_length], texts=texts), pairs, probes).metrics
    assert found["probe/repeated"].mean == 1.0 and found["probe/empty"].mean == 0.0
    assert found["probe/truncated"].n == 1  # of two words
    assert found["probe/polite"].mean == 1.0 and found["probe/plain"].mean == pytest.approx(1 / 3)
    assert 0.3 < found["probe/repeated"].low < 1.0
    cut = replace(read([dict.fromkeys(by_length, 1.0)], texts=texts), cut=np.ones(len(texts), dtype=bool))
    assert "probe/repeated" not in diagnose(cut, pairs, probes).metrics  # the same tokens, once both are cut
