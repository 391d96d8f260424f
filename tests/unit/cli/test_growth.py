"""`python -m rlhf growth`, as small as can be; how time grows is not tested."""

import json

import pytest
from support.command import run_here

from rlhf.cli import growth
from rlhf.config.errors import ConfigError

SMALL = (
    "data.max_prompt_tokens=8", "data.max_response_tokens=8", "rollout.max_new_tokens=8", "bench.repeats=1",
    "launcher.threads=1",
)  # fmt: skip
FEW = {"batch": (2, 4), "length": (8, 16), "width": (32, 64), "ranks": (1, 2), "records": (20, 40), "points": (1, 2)}


def measure(monkeypatch, tmp_path, *axes):
    monkeypatch.setattr(growth, "VALUES", FEW)
    done = run_here("growth", *axes, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs" / "bench").glob("-".join(["growth", *axes, "opt-tiny-cpu-2*.json"]))
    found = json.loads(file.read_text())
    assert growth.make_tables(found) in done.stdout and str(file.relative_to(tmp_path)) in done.stdout
    assert found["packages"]["torch"] and found["processor"] and len(found["load"]) == 3
    for series in found["series"]:
        assert all(time > 0 for row in series["rows"] for time in row["rounds"])
    return found


def test_steps_and_commands_are_measured_printed_and_stored(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(growth, "run_program", lambda words: asked.append(words) or 0.5 * len(asked))
    found = measure(monkeypatch, tmp_path, "batch", "records", "points")
    batch, encoded, opened, points = found["series"]
    assert [(row["value"], len(row["rounds"])) for row in batch["rows"]] == [(2, 1), (4, 1)]
    assert sum(batch["rows"][0]["shares"].values()) == pytest.approx(1)
    assert [row["rounds"] for row in encoded["rows"] + opened["rows"]] == [[0.5], [1.5], [1.0], [2.0]]
    assert [words[0] for words in asked] == ["data"] * 4 + ["plan"] * 2 and asked[0] == asked[1] != asked[2]
    assert asked[-1] == ["plan", "-m", "ppo.kl_coef=0.00001,0.00002", "--json"]
    assert [row["rounds"] for row in points["rows"]] == [[2.5], [3.0]]
    assert found["command"].startswith("python -m rlhf growth batch records points data.max_prompt_tokens=8 ")


@pytest.mark.slow
def test_all_axes_run(monkeypatch, tmp_path):
    found = measure(monkeypatch, tmp_path)
    amounts = {series["title"].partition(":")[0]: [row["amount"] for row in series["rows"]] for series in found["series"]}
    assert (amounts["Lengths"], amounts["Ranks"], amounts["Points"]) == ([16, 32], [1, 0.5], [1, 2])
    assert amounts["Width"][1] > 2 * amounts["Width"][0]  # operations: the square of the width, beside the embedding's


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["breadth"], "axis=breadth: there is no such axis; choose some of batch, length, width"),
        (["bench.what=sft"], "bench.what=sft: this command measures steps of PPO"),
        (["batch", "-m"], "argument=-m"),
        (["ppo.kl_cof=1"], "ppo.kl_cof=1: there is no such key"),
    ],
)
def test_bad_input_names_value_and_fix(arguments, start):
    with pytest.raises(ConfigError) as error:
        growth.measure_growth(arguments, None)
    assert str(error.value).startswith(start)


def test_a_command_that_fails_says_why():
    with pytest.raises(ConfigError, match=r"ppo\.kl_cof=1: there is no such key"):
        growth.run_program(["plan", "ppo.kl_cof=1"])
