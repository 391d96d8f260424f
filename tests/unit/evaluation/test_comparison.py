"""What stored answers tell: metrics over prompts, win rates of pairs, pass@k and best-of-n, the report for people and
scripts."""

import json
import shutil

import numpy as np
import pytest

from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal
from rlhf.evaluation.answers import add_answers, keep_answers, read_answers
from rlhf.evaluation.pairs import compare_answers, compare_verdicts
from rlhf.evaluation.prompts import read_prompts
from rlhf.evaluation.report import build_report, describe_report, print_report
from rlhf.evaluation.summary import best_of_n_curves, summarize_answers, summarize_subsets
from rlhf.evaluation.targets import find_models, find_targets
from rlhf.experiment.stage_directory import Result, StageDirectory
from rlhf.experiment.store import write_json


def make_rows(scores, samples=1, **columns):
    """Answers with these scores, `samples` in a row to each prompt."""
    rows = []
    for number, score in enumerate(scores):
        row = {"number": number, "index": number // samples, "prompt": f"prompt {number // samples}", "meta": {}}
        row |= {"response": "one two", "score": score, "gold": None, "rewards": {"model": score}, "kl": None, "kl3": None}
        row |= {"length": 2, "ended": True, "entropy": 0.5}
        rows.append(row | {name: values[number] for name, values in columns.items()})
    return rows


def test_a_prompt_counts_once_however_many_samples_it_has():
    found = summarize_answers(make_rows([1.0, 3.0, 5.0, 7.0], samples=2, kl=[1.0, 1.0, 3.0, 3.0], kl3=[0.0] * 4))
    assert (found["eval/reward"].mean, found["eval/reward"].n) == (4.0, 2)
    assert found["eval/reward"].se == pytest.approx(2.0)  # of 2 and 6
    assert (found["eval/kl_sequence"].mean, found["eval/kl_token"].mean) == (2.0, 1.0)
    assert found["eval/distinct_1"].mean == 2 / 8
    assert "eval/gold" not in found


def test_pass_at_k_is_told_of_scores_of_0_and_1_alone():
    found = summarize_answers(make_rows([1.0, 0.0, 0.0, 0.0], samples=2))
    assert [found[f"eval/pass_{k}_reward"].mean for k in (1, 2)] == [0.25, 0.5]
    assert not any("pass" in name for name in summarize_answers(make_rows([1.0, 0.5], samples=2)))


def test_curves_tell_the_gold_reward_of_what_the_proxy_chooses():
    curves = best_of_n_curves(make_rows([1.0, 2.0, 1.0, 2.0], samples=2, gold=[4.0, 0.0, 4.0, 0.0]))
    found = {(c["judged_by"], c["n"]): c["estimate"].mean for c in curves}
    assert found == {("reward", 1): 1.5, ("reward", 2): 2.0, ("gold", 1): 2.0, ("gold", 2): 0.0}  # over-optimised
    assert best_of_n_curves(make_rows([1.0, 2.0])) == []


def test_subsets_are_the_few_values_of_a_key_of_the_records():
    meta = [{"kind": "a", "id": 1}, {"kind": "b", "id": 2}, {"kind": "a", "id": [3]}]
    found = summarize_subsets(make_rows([1.0, 2.0, 5.0], meta=meta))
    assert found["kind=a"]["eval/reward"].mean == 3.0
    assert found["kind=a"]["eval/reward"].n == 2


def test_win_rates_with_ties_and_at_equal_length():
    first = make_rows([0.0] * 8, gold=[1.0] * 8)
    second = make_rows([1.0] * 6 + [0.0, -1.0], gold=[2.0] * 8, length=[2, 3, 2, 3, 2, 3, 2, 3])
    found = {pair.by: pair for pair in compare_answers(("a", "b"), first, second)}
    assert (found["reward"].win.mean, found["reward"].ties, found["reward"].win.n) == (6.5 / 8, 1, 8)
    assert found["reward"].p == pytest.approx(2 * 8 / 2**7)  # 6 of 7, ties apart
    assert not found["reward"].is_decided
    assert found["gold"].win.mean == 1.0
    assert found["gold"].is_decided
    assert set(found) == {"gold", "gold at equal length", "reward", "reward at equal length"}


def test_invalid_verdicts_count_nowhere():
    rows = make_rows([0.0] * 4)
    (found,) = compare_verdicts(("a", "b"), rows, rows, [1.0, None, 0.5, None])
    assert (found.win.mean, found.win.n, found.ties) == (0.75, 2, 1)
    assert compare_verdicts(("a", "b"), rows, rows, [None] * 4) == []


def test_an_answer_that_is_cut_off_is_made_again(tmp_path):
    rows = make_rows([1.0, 2.0])
    add_answers(tmp_path, rows)
    with (tmp_path / "answers.jsonl").open("a") as stream:
        stream.write('{"number": 2, "resp')
    assert read_answers(tmp_path) == rows
    keep_answers(tmp_path, rows[:1])
    assert read_answers(tmp_path) == rows[:1]


@pytest.fixture
def evaluations(tmp_path):
    """Two evaluations that are done."""
    draw, found = np.random.default_rng(0), []
    for number, better in enumerate((0.0, 2.0)):
        directory = StageDirectory(tmp_path / f"evaluate-{number:012x}")
        directory.path.mkdir()
        scores = (draw.normal(size=30) + better).tolist()
        add_answers(directory.path, make_rows(scores, meta=[{"kind": "ab"[i % 2]} for i in range(30)]))
        metrics = {"eval/perplexity": 2.0, "eval/perplexity_se": 0.1, "data/demonstrated": 5.0}
        write_json(directory.path / "result.json", Result("evaluate", f"{number:064x}", 1.0, metrics).__dict__)
        found.append(directory)
    return found


def test_what_scripts_read(evaluations):
    found = json.loads(json.dumps(describe_report(build_report(["sft", "ppo"], evaluations))))
    assert set(found) == {"models", "pairs"}
    assert [set(model) for model in found["models"]] == [{"name", "fingerprint", "metrics"}] * 2
    assert found["models"][1]["fingerprint"] == f"{1:064x}"
    metrics = found["models"][0]["metrics"]
    assert all(set(values) == {"mean", "se", "low", "high", "n"} for values in metrics.values())
    assert metrics["eval/perplexity"] == {"mean": 2.0, "se": 0.1, "low": pytest.approx(1.804), "high": 2.196, "n": 5}
    assert metrics["eval/reward[kind=a]"]["n"] == 15
    (pair,) = found["pairs"]
    assert set(pair) == {"a", "b", "by", "win", "low", "high", "ties", "n"}
    assert (pair["a"], pair["b"], pair["by"], pair["n"]) == ("sft", "ppo", "reward", 30)
    assert pair["low"] > 0.5


@pytest.mark.parametrize("width", [80, 160])
def test_what_people_read(evaluations, width, capsys):
    print_report(build_report(["sft", "ppo"], evaluations), Terminal(width=width))
    text = capsys.readouterr().out
    assert all(len(line) <= width or "│" not in line for line in text.splitlines())
    assert "30 prompts, 1 answer to each" in text
    assert ("[" in text) == (width == 160)  # intervals where there is room
    (row,) = [line for line in text.splitlines() if "│ sft" in line and "reward" in line]
    assert row.split("│")[-2].strip() == "b"


def test_prompts_of_deepspeed_chat_and_of_files(tmp_path):
    asked = read_prompts("deepspeed-chat")
    assert {one.meta["language"] for one in asked} == {"English", "Chinese", "Japanese"}
    assert len(asked) == len({one.prompt for one in asked}) == 18
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "One?", "answer": "1"}\n\n{"prompt": [{"role": "user", "content": "Two?"}]}\n')
    one, two = read_prompts(str(file))
    assert (one.prompt, one.meta, two.prompt[0].content) == ("One?", {"answer": "1"}, "Two?")
    file.write_text('{"text": "One?"}\n')
    with pytest.raises(ConfigError, match="line 1 holds no prompt"):
        read_prompts(str(file))


def test_a_command_names_runs_sweeps_stages_and_models(tmp_path):
    def model(path, name):
        write_json(path / "config.json", {"architectures": [name]})

    stages = {}
    for stage, inputs in {"sft": {}, "reward": {}, "ppo": {"actor": "sft/model", "reward": "x/reward"}}.items():
        directory = tmp_path / "stages" / f"{stage}-{0:012x}"
        model(directory / "model", "OPTForSequenceClassification" if stage == "reward" else "OPTForCausalLM")
        write_json(directory / "spec.json", {"stage": stage, "fingerprint": "0" * 64, "config": {}, "inputs": inputs})
        write_json(directory / "result.json", {"stage": stage})
        (tmp_path / "runs/one/stages").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/one/stages" / directory.name).symlink_to(directory)
        stages[stage] = directory
    entries = {stage: {"directory": str(directory)} for stage, directory in stages.items()}
    run = {"point": "one", "overrides": [], "state": "done", "stages": entries}
    write_json(tmp_path / "runs/one/summary.json", run)
    found = find_targets([str(tmp_path / "runs/one"), "org/model"])
    assert [(target.name, target.is_scorer) for target in found] == [("sft", False), ("ppo", False), ("org/model", False)]
    assert [target.reward for target in found] == [str(stages["reward"]), "x/reward", None]
    assert find_targets([str(stages["reward"])])[0].is_scorer
    assert [target.name for target in find_targets([str(tmp_path / "runs")])] == ["sft", "ppo one"]
    assert [model.path for model in find_models(str(tmp_path / "runs"), scorers=True)] == [str(stages["reward"])]
    member = tmp_path / "stages" / f"reward-{1:012x}"
    shutil.copytree(stages["reward"], member)
    write_json(tmp_path / "runs/one/summary.json", run | {"members": {"reward-1": {"directory": str(member)}}})
    found = find_models(str(tmp_path / "runs/one"), scorers=True)
    assert [model.path for model in found] == [str(stages["reward"]), str(member)]
    write_json(tmp_path / "runs/one/summary.json", run | {"stages": {"sft": entries["sft"]}})
    with pytest.raises(ConfigError, match="no reward model of it is done"):
        list(find_models(str(tmp_path / "runs/one"), scorers=True))
    for word, told in ((str(tmp_path), "no model"), ("./nowhere", "no such directory")):
        with pytest.raises(ConfigError, match=told):
            find_targets([word])
    with pytest.raises(ConfigError, match="others that are named are policies"):
        find_targets([str(stages["reward"]), str(stages["sft"])])
