"""The built-in reward functions, and functions in a process of their own."""

import json
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from rlhf.config.errors import ConfigError
from rlhf.config.rewards import DEFAULTS
from rlhf.config.schema import RewardTerm
from rlhf.rewards.function import FunctionReward
from rlhf.rewards.functions import FUNCTIONS
from rlhf.rewards.sample import Sample
from rlhf.rewards.worker import ScoreError, check_scores

TEXT = "the cat sat on the mat and the cat sat on the rug"


@pytest.mark.parametrize(
    ("name", "options", "response", "record", "score"),
    [
        ("length", {}, TEXT, {}, 13.0),
        ("length", {"target": 10}, TEXT, {}, -0.3),
        ("repetition", {"n": 3}, TEXT, {}, -(1 - 8 / 11)),
        ("repetition", {}, "no", {}, 0.0),
        ("format", {"pattern": r"<answer>.*</answer>"}, "so\n<answer>4\n2</answer>", {}, 1.0),
        ("format", {"pattern": r"\d+", "whole": True}, "42 apples", {}, 0.0),
        ("exact_match", {}, " Paris ", {"answer": "paris"}, 1.0),
        ("exact_match", {"pattern": r"#### (\S+)"}, "#### 3 no, #### 42", {"answer": 42}, 1.0),
        ("exact_match", {"pattern": r"#### (\d+)|none"}, "#### 42, or none", {"answer": 42}, 1.0),
        ("exact_match", {}, "Paris", {}, None),
        ("multiple_choice", {}, "A is wrong. It's (C).", {"answer": "C"}, 1.0),
        ("multiple_choice", {}, "no letter", {"answer": "C"}, 0.0),
        ("multiple_choice", {}, "Perhaps B", {"answer": "(C)"}, 0.0),
    ],
)
def test_a_built_in_function_scores(name, options, response, record, score):
    (found,) = FUNCTIONS[name](["?"], [response], [record], **options)
    assert found == (None if score is None else pytest.approx(score))


def test_repetition_lowers_compression():
    varied, same = FUNCTIONS["compression"](["?", "?"], [TEXT, "the cat " * 20], [{}, {}])
    assert 0 < same < varied <= 1


def test_functions_that_need_a_package_use_it(monkeypatch, tmp_path):
    """The packages are optional; stand-ins show how they are called."""

    class Analyzer:
        def polarity_scores(self, text):
            return {"compound": 0.5 if "good" in text else -0.5}

    class Validator:
        def __init__(self, rules):
            self.rules = rules

        def is_valid(self, found):
            return set(found) == set(self.rules["required"])

    vader, outer = ModuleType("vaderSentiment.vaderSentiment"), ModuleType("vaderSentiment")
    vader.SentimentIntensityAnalyzer = Analyzer
    for name, module in {
        "vaderSentiment": outer, "vaderSentiment.vaderSentiment": vader,
        "jsonschema": SimpleNamespace(validators=SimpleNamespace(validator_for=lambda rules: Validator)),
        "math_verify": SimpleNamespace(
            parse=lambda text, parsing_timeout: text.strip("$"), verify=lambda gold, found, timeout_seconds: gold in found
        ),
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    assert FUNCTIONS["vader"](["", ""], ["good", "bad"], [{}, {}]) == [0.5, -0.5]
    assert FUNCTIONS["math"](["", ""], [r"\boxed{7}", "8"], [{"answer": "so #### 7"}] * 2) == [1.0, 0.0]
    (tmp_path / "schema.json").write_text(json.dumps({"required": ["a"]}))
    texts = ['{"a": 1}', '{"b": 1}', "no"]
    assert FUNCTIONS["json_schema"](texts, texts, [{}] * 3, schema=str(tmp_path / "schema.json")) == [1.0, 0.5, 0.0]
    assert FUNCTIONS["json_schema"](texts, texts, [{}] * 3) == [None] * 3


SOURCE = """
import asyncio, os, re, time

def score(prompts, responses, records, factor=1.0):
    return [None if r.get("skip") else factor * len(p + t) for p, t, r in zip(prompts, responses, records)]

async def later(prompts, responses, records):
    await asyncio.sleep(0)
    return [1.0 for _ in responses]

def divide(prompts, responses, records):
    return [1 / int(t) for t in responses]

def wrong(prompts, responses, records):
    return [float(t) for t in responses]

def parts(prompts, responses, records):
    words = [re.finditer(r"\\w+", response) for response in responses]
    return [
        {"score": 0.5, "spans": [(*w.span(), 1.0) for w in found]} if text != "one" else {"spans": [[0, 3, 1]]}
        for text, found in zip(responses, words)
    ]

def short(prompts, responses, records):
    return []

def slow(prompts, responses, records):
    time.sleep(60)

def die(prompts, responses, records):
    os._exit(7)
"""


@pytest.fixture
def reward(tmp_path):
    """Makes a reward of a function in a file; all their processes end with the test."""
    (tmp_path / "mine.py").write_text(SOURCE)
    made = []

    def make(name, **keys):
        term = RewardTerm(**(DEFAULTS | {"kind": "function", "function": f"{tmp_path}/mine.py:{name}"} | keys))
        made.append(FunctionReward("rewards.mine.function", term))
        return made[-1]

    yield make
    for each in made:
        each.close()


def samples(*texts):
    return [Sample("?", text) for text in texts]


def ask(reward, *texts):
    reward.ask(samples(*texts))
    return reward.answer()


def test_a_function_in_a_file_scores_batch_after_batch_with_its_options(reward):
    mine = reward("score", options={"factor": 2.0})
    mine.ask([Sample("ab", "c"), Sample("ab", "c", {"skip": True})])
    assert mine.answer() == [6.0, None]
    assert ask(mine) == [] and ask(mine, "four") == [10.0]
    assert ask(reward("later"), "a", "b") == [1.0, 1.0]


def test_a_file_may_lie_in_the_home_directory(reward, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ask(reward("later", function="~/mine.py:later"), "a") == [1.0]


@pytest.mark.parametrize(
    ("name", "texts", "told"),
    [
        (
            "divide",
            ("1", "0", "2"),
            'it fails on sample 1, prompt "\\?", response "0" \\(ZeroDivisionError: division by zero',
        ),
        ("wrong", ("1", "nan"), "it fails on sample 1.*its score is nan, no finite number"),
        ("short", ("1",), "it returns 0 scores for 1 responses"),
        ("die", ("1",), "its process ended with exit code 7"),
        ("missing", ("1",), "it cannot be imported.*missing"),
    ],
)
def test_a_function_that_fails_is_told_in_one_line_with_its_sample(reward, name, texts, told):
    with pytest.raises(ConfigError, match=told) as raised:
        ask(reward(name), *texts)
    assert str(raised.value).startswith("rewards.mine.function=") and "\n" not in str(raised.value)


def test_a_score_may_fall_on_spans(reward):
    found = ask(reward("parts"), "one two", "one", "")
    assert found == [2.5, 1.0, 0.5] and [s.spans for s in found] == [((3, 1.0), (7, 1.0)), ((3, 1.0),), ()]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"spans": [(0, 4, 1.0)]}, "its span 0 to 4 is no part of 3 characters"),
        ({"spans": [(2, 2, 1.0)]}, "its span 2 to 2 is no part"),
        ({"spans": [(0, 1)]}, r"its span is \(0, 1\), not \(start, end, value\)"),
        ({"spans": [(0, 1, float("nan"))]}, "no finite number"),
        ({"score": 1.0, "span": []}, "its score has span beside score and spans"),
    ],
)
def test_a_span_that_is_none_is_refused_with_its_sample(answer, problem):
    with pytest.raises(ScoreError, match=problem) as raised:
        check_scores([1.0, answer], ["abc", "abc"])
    assert raised.value.index == 1


def test_a_function_that_takes_too_long_is_stopped(reward):
    slow, started = reward("slow", timeout_s=0.2), time.monotonic()
    with pytest.raises(ConfigError, match=r"longer than 0.2 s for 1 responses; raise rewards.mine.timeout_s"):
        ask(slow, "1")
    assert slow.process is None and time.monotonic() - started < 30
