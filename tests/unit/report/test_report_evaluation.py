"""Panels of evaluations and of diagnoses of reward models, from what those leave on disk."""

import json
import os
from dataclasses import asdict

import pytest
from support.fake_sweep import FakeSweep, config

from rlhf.evaluation.reward.diagnosis import Diagnosis
from rlhf.evaluation.reward.result import FILE
from rlhf.evaluation.reward.statistics import Bin, Histogram
from rlhf.evaluation.statistics import Estimate
from rlhf.report.collect import collect
from rlhf.report.drawing import write_svg
from rlhf.report.groups import group_points
from rlhf.report.looks import choose_design
from rlhf.report.panels import View, evaluation, reward_models

PROMPTS = 12


def answer(number, gold):
    """A line of answers.jsonl: two answers to each prompt."""
    index = number // 2
    texts = {"prompt": f"prompt {index}", "response": "a b c", "meta": {"language": "en" if index % 2 else "ja"}}
    scores = {"score": -gold, "gold": gold, "rewards": {"model": -gold}, "kl": 1.0, "kl3": 1.0, "entropy": 1.0}
    return {"number": number, "index": index, "length": 3, "ended": True, **texts, **scores}


def evaluate(sweep, number, golds):
    """An evaluation whose answers have these gold rewards, [prompts, 2]."""
    flat = [gold for own in golds for gold in own]
    mean = sum(flat) / len(flat)
    metrics = {"eval/gold": mean, "eval/gold_se": 0.1, "eval/reward": -mean, "eval/reward_se": 0.1}
    stage = sweep.stage("evaluate", number, metrics | {"data/prompts": float(len(golds))})
    lines = [answer(place, gold) for place, gold in enumerate(flat)]
    (stage / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return stage


def make_view(sweep):
    collection = collect(sweep.place)
    groups = group_points(collection)
    return View(collection, groups, choose_design(groups))


@pytest.fixture
def sweep(tmp_path):
    """Two KL coefficients: the answers of the second are better by gold, and as much worse by the score."""
    made = FakeSweep(tmp_path)
    for number, (kl, better) in enumerate(((0.05, 0.0), (0.3, 1.0))):
        stage = evaluate(made, number, [(better + 0.01 * prompt, better + 2 + 0.01 * prompt) for prompt in range(PROMPTS)])
        made.point([made.stage("reward", number), stage], settings=config(kl, 0))
    return made


def tables(panel):
    return {table.name: table.rows for table in panel.tables}


def test_one_seed_is_compared_over_prompts_and_proxy_and_gold_apart(sweep):
    panel = evaluation.make_panel(make_view(sweep))
    assert panel.shown == [1, 1]
    rows = tables(panel)
    assert [row["group"] for row in rows["evaluation"]] == ["ppo.kl_coef=0.05", "ppo.kl_coef=0.3"]
    assert rows["evaluation"][1]["gold"] == "2.05 [1.86, 2.25]"
    by_gold, by_score = rows["evaluation-wins"]
    assert (by_gold["by"], by_gold["b wins"], by_gold["ties"], by_gold["n"]) == ("gold", "100%", 0, PROMPTS)
    assert (by_gold["better"], by_score["better"], by_score["b wins"]) == ("b", "a", "0%")
    assert by_gold["p"] == pytest.approx(2 / 2**PROMPTS)
    assert list(rows["evaluation-subsets"][0]) == ["group", "language=en", "language=ja"]
    svgs = {drawing.name: write_svg(drawing) for drawing in panel.drawings}
    assert list(svgs) == ["evaluation-metrics", "evaluation-wins", "evaluation-best-of-n"]
    assert "100%" in svgs["evaluation-wins"] and "Win rate by gold" in svgs["evaluation-wins"]
    # What the score chooses of n is worse by gold: the plot of gold against n falls.
    assert "mean gold" in svgs["evaluation-best-of-n"]


def test_several_seeds_are_compared_over_seeds(sweep):
    for number, (kl, better) in enumerate(((0.05, 0.0), (0.3, 0.2)), start=2):
        stage = evaluate(sweep, number, [(better * (prompt % 4 - 1), 0.5) for prompt in range(PROMPTS)])
        sweep.point([stage], settings=config(kl, 1))
    panel = evaluation.make_panel(make_view(sweep))
    assert panel.shown == [2, 2]
    (by_gold, _) = tables(panel)["evaluation-wins"]
    # One seed wins all, the other some, with ties: two seeds say little, whatever their prompts say.
    assert by_gold["n"] == 2 and by_gold["ties"] == 15 and by_gold["better"] == "not told apart" and by_gold["p"] > 0.05


def note_question(stage, policy, model="model", **keys):
    """Write whose policy an evaluation is of, and what it asks beside the seed."""
    inputs = {"actor": f"/elsewhere/stages/{policy}/{model}", "reference": "/elsewhere/stages/sft-1/model"}
    (stage / "spec.json").write_text(json.dumps({"inputs": inputs, "config": {"seed": 0, "evaluate": keys}}))


@pytest.fixture
def policies(tmp_path):
    """A sweep whose two policies come from one SFT model; no point has an evaluation."""
    made = FakeSweep(tmp_path)
    sft = made.stage("sft", 0)
    for number, kl in enumerate((0.05, 0.3)):
        made.point([sft, made.stage("ppo", number)], settings=config(kl, 0))
    return made


def test_evaluations_by_hand_are_shown_in_the_groups_of_their_policies(policies):
    named = {16: "ppo-000000000000", 17: "ppo-000000000001", 18: "sft-000000000000", 19: "ppo-00000000000f"}
    for number, policy in named.items():
        note_question(evaluate(policies, number, [(number, number)] * PROMPTS), policy, samples=2)
    note_question(evaluate(policies, 20, [(20, 20)] * PROMPTS), named[16], model="ema", samples=2)
    panel = evaluation.make_panel(make_view(policies))
    rows = tables(panel)
    assert list(rows) == ["evaluation-1", "evaluation-wins-1", "evaluation-subsets-1"] and panel.shown == [1, 1]
    assert [(row["group"], row["gold"][:5]) for row in rows["evaluation-1"]] == [
        ("ppo.kl_coef=0.05", "16.00"), ("ppo.kl_coef=0.3", "17.00"), ("sft", "18.00"),
    ]  # fmt: skip
    assert panel.tables[0].heading == "Metrics of each group: evaluate.samples=2"
    assert [(row["a"], row["b"], row["b wins"]) for row in rows["evaluation-wins-1"]][2:4] == [
        ("ppo.kl_coef=0.05", "sft", "100%"), ("ppo.kl_coef=0.05", "sft", "0%"),
    ]  # fmt: skip
    assert "evaluate.samples=2" in write_svg(panel.drawings[0])


def test_an_evaluation_by_hand_that_asks_what_the_points_ask_stands_beside_theirs(policies):
    for number, policy in enumerate(("ppo-000000000000", "ppo-000000000001"), start=16):
        stage = evaluate(policies, number, [(number, number)] * PROMPTS)
        note_question(stage, policy)
        point = sorted(policies.place.iterdir())[number - 16]
        (point / "stages" / stage.name).symlink_to(stage)
    note_question(evaluate(policies, 18, [(18, 18)] * PROMPTS), "sft-000000000000")
    panel = evaluation.make_panel(make_view(policies))
    assert [row["group"] for row in tables(panel)["evaluation"]] == ["ppo.kl_coef=0.05", "ppo.kl_coef=0.3", "sft"]
    assert {table.name.rpartition("-")[2] for table in panel.tables} == {"evaluation", "wins", "subsets"}


def test_sets_of_evaluations_that_are_left_out_are_counted(policies, monkeypatch):
    for samples in (2, 3):
        note_question(evaluate(policies, 16 + samples, [(1, 1)] * PROMPTS), "ppo-000000000000", samples=samples)
    assert "newest" not in evaluation.make_panel(make_view(policies)).note
    monkeypatch.setattr(evaluation, "MOST_ASKED", 1)
    assert "Shown are the newest 1 of 2 such sets." in evaluation.make_panel(make_view(policies)).note


@pytest.mark.parametrize("damage", ["cut", "gone", "odd"])
def test_answers_that_are_not_whole_are_not_compared(sweep, damage):
    file = next(sweep.root.glob("stages/evaluate-*1")) / "answers.jsonl"
    content = file.read_text()
    if damage == "gone":
        file.unlink()
    else:
        file.write_text(content[:-30] if damage == "cut" else content.replace('"gold": 1.0', '"gold": "high"'))
    panel = evaluation.make_panel(make_view(sweep))
    assert "evaluation-wins" not in tables(panel)
    assert [row["gold"] for row in tables(panel)["evaluation"]] == ["1.05 [0.86, 1.25]", "2.05 [1.86, 2.25]"]


def test_the_newest_diagnosis_beside_the_stages_is_shown(sweep, tmp_path):
    assert reward_models.make_panel(make_view(sweep)) is None
    metrics = {"accuracy": Estimate(0.7, 0.02, 0.66, 0.74, 100), "ece": Estimate(0.05, None, None, None, 100)}
    found = Diagnosis(metrics, {"pairs": 100}, [Bin(0.5, 0.6, 0.55, 0.5, 100)], Histogram([0.0, 1.0], [3], [2]))
    for place, (name, accuracy) in enumerate((("a", 0.5), ("b", 0.7))):
        directory = tmp_path / "evaluations" / f"reward-{name}"
        directory.mkdir(parents=True)
        found.metrics["accuracy"] = Estimate(accuracy, 0.02, accuracy - 0.04, accuracy + 0.04, 100)
        content = {"diagnoses": {"reward-000000000000": asdict(found), "reward-elsewhere": asdict(found), "odd": {}}}
        (directory / FILE).write_text(json.dumps(content))
        os.utime(directory, (place, place))
    panel = reward_models.make_panel(make_view(sweep))
    (row,) = tables(panel)["reward-models"]
    assert (row["model"], row["accuracy"]) == ("reward-000000000000", "0.700 [0.660, 0.740]")
    assert row["directory"].endswith("reward-b (the newest; 1 older one)")
    (svg,) = map(write_svg, panel.drawings)
    assert "calibration error 0.050" in svg and "reward-000000000000" in svg
