"""Answers of several policies beside each other: on a terminal, as lines, and on a page."""

import pytest

from rlhf.config.terminal import Terminal
from rlhf.evaluation.beside import align_answers, print_answers
from rlhf.evaluation.report import Evaluated, Report
from rlhf.report.policies import write_policies_page


def make_rows(prompts, answer):
    """Two answers to each prompt."""
    common = {"score": 0.5, "gold": None, "length": 3, "ended": False, "rewards": {}, "kl": None}
    return [
        {"prompt": prompt, "index": index, "response": f"{answer} {sample}", "meta": {"language": "Japanese"}, **common}
        for index, prompt in enumerate(prompts)
        for sample in range(2)
    ]


MODELS = [
    ("base", make_rows(["one?", "何?"], "no <b>")),
    ("tuned", make_rows(["one?", "何?"], "yes\x1b[31m " + "word " * 30)),
]


def test_each_prompt_stands_once_with_the_answers_of_all():
    lines = [beside.describe() for beside in align_answers(MODELS)]
    assert [(line["prompt"], line["index"], line["sample"]) for line in lines] == [
        ("one?", 0, 0), ("one?", 0, 1), ("何?", 1, 0), ("何?", 1, 1),
    ]  # fmt: skip
    assert lines[1]["answers"]["base"] == {"response": "no <b> 1", "score": 0.5, "gold": None, "length": 3, "ended": False}
    others = list(align_answers([MODELS[0], ("other", make_rows(["two?"], "yes"))]))
    assert [set(beside.answers) for beside in others[:4]] == [{"base"}, {"other"}, {"base"}, {"other"}]


@pytest.mark.parametrize("width", [80, 160])
def test_answers_fit_a_terminal_in_columns_where_there_is_room(width, capsys):
    print_answers(align_answers(MODELS), Terminal(width=width))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width and "\x1b" not in said and "何?" in said
    assert any("base (0.50), cut" in line and "tuned (0.50), cut" in line for line in said.splitlines()) is (width == 160)


def test_a_page_needs_nothing_else():
    models = [Evaluated(name, "0" * 64, rows, {}, 3) for name, rows in MODELS]
    page = write_policies_page(Report(models, [], {}), align_answers(MODELS))
    assert 'lang="ja"' in page and "no &lt;b&gt; 0" in page and "no &lt;b&gt; 1" not in page and "were left out: 3" in page
    assert "prefers-color-scheme: dark" in page and "http" not in page and "\x1b" not in page
