import json
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from support.command import ROOT
from support.fake_sweep import FakeSweep, answer, config, grid, step, write
from support.quick import mark_slow

from rlhf.cli.report import main
from rlhf.cli.status import main as status
from rlhf.report.collect import collect
from rlhf.report.failures import failures, missing


def found(sweep):
    """Failures by name, as (state, reason, log)."""
    return {failure.name: (failure.state, failure.reason, failure.log) for failure in failures(collect(sweep.place))}


def refused(capsys, *arguments):
    """The one line that is said, with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_no_such_directory(tmp_path, capsys):
    assert "there is no such directory" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "not a directory" in refused(capsys, tmp_path / "file")


def test_a_directory_without_points_says_where_they_are(tmp_path, capsys):
    sweep = grid(tmp_path)
    assert str(sweep.place) in refused(capsys, tmp_path / "sweeps")
    assert str(sweep.place) in refused(capsys, tmp_path)
    assert "a stage's directory" in refused(capsys, tmp_path / "stages" / f"sft-{0:012x}")
    (tmp_path / "empty").mkdir()
    assert "no point in it" in refused(capsys, tmp_path / "empty")


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    sweep = grid(tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(capsys, sweep.place, "--output", tmp_path / "file" / "report")


def test_a_failed_stage_with_its_reason_and_log(tmp_path):
    sweep = grid(tmp_path)
    failed = sweep.stage("ppo", 99, state="failed", lines=[step(1, 0.0)], reason="reward/mean is not finite at step 2")
    (failed / "logs").mkdir()
    (failed / "logs" / "rank-0.log").write_text("Traceback\n")
    sweep.point([failed], state="failed", settings=config(0.9), told={"ppo": {"state": "failed"}})
    log = str(failed / "logs" / "rank-0.log")
    assert found(sweep) == {failed.name: ("failed", "reward/mean is not finite at step 2", log)}
    assert failures(collect(sweep.place))[0].points == ("ppo.kl_coef=0.9,seed=0",)
    assert main([str(sweep.place)]) == 0
    rows = json.loads((sweep.place / "report" / "points.json").read_text())
    assert [row["state"] for row in rows] == ["done"] * 4 + ["failed"]
    assert rows[4]["ppo eval/gold"] is None


def test_stages_that_never_began(tmp_path):
    """Links that lead nowhere yet: skipped because of another stage, or still to come."""
    sweep = FakeSweep(tmp_path)
    skipped, planned = tmp_path / "stages" / "ppo-000000000001", tmp_path / "stages" / "ppo-000000000002"
    reason = {"ppo": {"state": "skipped", "reason": "sft failed"}}
    sweep.point([skipped], state="skipped", settings=config(0.1), told=reason)
    sweep.point([planned], state="planned", settings=config(0.2))
    assert found(sweep)[skipped.name] == ("skipped", "sft failed", None)
    assert missing(collect(sweep.place)) == [f"{planned.name}: planned"]
    assert [point.state for point in collect(sweep.place).points] == ["skipped", "planned"]
    assert main([str(sweep.place)]) == 0


def test_a_failure_is_listed_once_however_many_points_lack_its_result(tmp_path):
    sweep = FakeSweep(tmp_path)
    failed = sweep.stage("sft", 1, state="failed", reason="out of memory")
    skipped = [tmp_path / "stages" / f"ppo-{number:012x}" for number in range(3)]
    for number, stage in enumerate(skipped):
        reason = {"ppo": {"state": "skipped", "reason": "sft failed"}}
        sweep.point([failed, stage], state="skipped", settings=config(number), told=reason)
    assert found(sweep) == {
        failed.name: ("failed", "out of memory", None),
        f"{skipped[0].name} and 2 more": ("skipped", "sft failed", None),
    }
    assert failures(collect(sweep.place))[0].points == ("all 3 points",)


def test_running_and_dead_processes(tmp_path):
    sweep = FakeSweep(tmp_path)
    alive = sweep.stage("ppo", 1, state="running", lines=[step(1, 0.0)])
    silent = sweep.stage("ppo", 2, state="running", heartbeat=time.time() - 600)
    queued = sweep.stage("ppo", 3, state="queued", job="123_4", heartbeat=time.time() - 6000)
    for number, stage in enumerate((alive, silent, queued)):
        sweep.point([stage], state="queued", settings=config(seed=number))
    with (alive / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "rew')
    assert [point.state for point in collect(sweep.place).points] == ["running", "silent", "queued"]
    assert set(found(sweep)) == {silent.name}
    assert found(sweep)[silent.name][1] == "no heartbeat for 10 min: its process is dead or hangs"
    assert f"{alive.name}: running at step 1 of 4" in missing(collect(sweep.place))
    assert main([str(sweep.place)]) == 0


def test_the_directory_is_newer_than_what_the_point_was_told(tmp_path):
    sweep = FakeSweep(tmp_path)
    stage = sweep.stage("ppo", 1, {"eval/gold": 1.0})
    sweep.point([stage], state="failed", told={"ppo": {"state": "failed", "reason": "killed", "log": "x.log"}})
    assert collect(sweep.place).points[0].state == "done"
    assert found(sweep) == {}


def test_a_process_that_died_without_a_word(tmp_path):
    """status.json still says running; the point knows that the stage was ended later."""
    sweep = FakeSweep(tmp_path)
    stage = sweep.stage("ppo", 1, state="running", heartbeat=time.time() - 5)
    sweep.point([stage], state="failed", told={"ppo": {"state": "failed", "reason": "killed by signal 9"}})
    assert found(sweep)[stage.name][:2] == ("failed", "killed by signal 9")


def test_a_cut_off_last_line_costs_that_line_only(tmp_path):
    sweep = FakeSweep(tmp_path)
    stage = sweep.stage("ppo", 1, state="stopped", lines=[step(1, 0.1), step(2, 0.2)], samples=[answer("p", 2)])
    with (stage / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "reward/me')
    with (stage / "samples.jsonl").open("a") as stream:
        stream.write('{"step": 4, "pro')
    sweep.point([stage], state="stopped")
    (read,) = collect(sweep.place).stages
    assert read.series.get("reward/mean").tolist() == [0.1, 0.2]
    assert [row["prompt"] for row in read.samples] == ["p"]
    reason = found(sweep)[stage.name][1]
    assert "the last line of metrics.jsonl is cut off" in reason
    assert "the last line of samples.jsonl is cut off" in reason


def test_damaged_lines_and_values_cost_themselves_only(tmp_path):
    sweep = FakeSweep(tmp_path)
    stage = sweep.stage("ppo", 1, {"eval/gold": 1.0, "eval/reward": None, "eval/length": "long", "eval/kl_sequence": 2})
    lines = [step(1, None), "nonsense", step(2, "x"), [1], step(3, 0.3), step(3, 0.5), {"step": "?"}, step(4, float("nan"))]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sweep.point([stage])
    (read,) = collect(sweep.place).stages
    assert read.metrics == {"eval/gold": 1.0, "eval/kl_sequence": 2.0}
    assert read.series.steps.tolist() == [1, 2, 3, 4]
    assert read.series.get("reward/mean")[2] == 0.5  # a step that was logged again after a restart
    assert found(sweep)[stage.name] == ("done", "2 of 8 lines of metrics.jsonl are damaged and were left out", None)
    assert main([str(sweep.place)]) == 0


OF_A_POINT = [b'{"point": "x", "sta', b"", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000]
OF_A_STAGE = [b'{"stage": "ppo", "fing', b"", b"[]", b"\xff\xfe", b'{"metrics": 3}', b"[" * 100_000]


@pytest.mark.parametrize("content", mark_slow(OF_A_POINT, [OF_A_POINT[0], b"[]"]))
@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_a_damaged_file_of_a_point_loses_nothing_else(tmp_path, name, content):
    sweep = grid(tmp_path)
    (sweep.place / "ppo.kl_coef=0.3,seed=1" / name).write_bytes(content)
    collection = collect(sweep.place)
    assert [failure.name for failure in failures(collection)] == ["ppo.kl_coef=0.3,seed=1"]
    assert name in failures(collection)[0].reason
    assert main([str(sweep.place)]) == 0
    rows = json.loads((sweep.place / "report" / "table.json").read_text())
    gold = [(row["group"], row["n"], row["mean"]) for row in rows if row["metric"] == "eval/gold"]
    assert gold == [("ppo.kl_coef=0.05", 2, 1.5), ("ppo.kl_coef=0.3", 2, 3.25)]


@pytest.mark.parametrize("content", mark_slow(OF_A_STAGE, [OF_A_STAGE[0], b"\xff\xfe"]))
@pytest.mark.parametrize("name", ["status.json", "result.json", "environment.json", "metrics.jsonl", "samples.jsonl"])
def test_a_damaged_file_of_a_stage_loses_nothing_else(tmp_path, name, content):
    sweep = grid(tmp_path)
    (tmp_path / "stages" / f"ppo-{16:012x}" / name).write_bytes(content)
    assert main([str(sweep.place)]) == 0
    rows = json.loads((sweep.place / "report" / "points.json").read_text())
    assert [row["ppo eval/gold"] for row in rows][1:] == [2.0, 3.0, 3.5]
    if name == "result.json" and content != b'{"metrics": 3}':
        assert rows[0]["state"] == "damaged"
        assert "result.json" in found(sweep)[f"ppo-{16:012x}"][1]


def test_stage_directories_without_files_or_without_a_directory(tmp_path):
    sweep = FakeSweep(tmp_path)
    empty, gone = tmp_path / "stages" / "sft-000000000001", tmp_path / "stages" / "ppo-000000000002"
    empty.mkdir(parents=True)
    told = {"ppo": {"state": "done", "metrics": {"eval/gold": 4.0}}}
    sweep.point([empty, gone], told=told)
    assert found(sweep)[empty.name][:2] == ("damaged", "status.json: it is missing")
    assert found(sweep)[gone.name][:2] == ("damaged", "its directory is gone; the metrics are those of summary.json")
    assert main([str(sweep.place)]) == 0
    assert json.loads((sweep.place / "report" / "points.json").read_text())[0]["ppo eval/gold"] == 4.0


def test_stages_are_found_without_links(tmp_path):
    """As after a copy that left links behind."""
    sweep = grid(tmp_path)
    for place in sweep.place.iterdir():
        shutil.rmtree(place / "stages")
    assert [stage.state for stage in collect(sweep.place).stages] == ["done"] * 8


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], {"ppo": 3}, {"ppo": {"directory": 5}}, {"ppo": {"directory": "\0" * 9}}]
)
def test_odd_values_in_a_summary(tmp_path, value):
    sweep = FakeSweep(tmp_path)
    write(sweep.place / "a" / "summary.json", {"point": 3, "overrides": "x", "state": value, "stages": value})
    assert main([str(sweep.place)]) == 0


def test_an_unreadable_stage_name_is_not_followed(tmp_path):
    sweep = FakeSweep(tmp_path)
    stages = {"ppo": {"directory": "x" * 5000, "state": "done"}, "sft": {"directory": "../..", "state": "done"}}
    write(sweep.place / "a" / "summary.json", {"overrides": [], "state": "done", "stages": stages})
    assert main([str(sweep.place)]) == 0


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "rlhf", "report"]
    help_ = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "outputs/sweeps/" in help_.stdout
    nowhere = subprocess.run([*command, str(tmp_path / "x")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert nowhere.stderr.startswith("error: ")


def test_nothing_heavy_is_imported():
    heavy = ("torch", "deepspeed", "transformers", "wandb", "datasets", "hydra")
    code = f"import sys, rlhf.cli.report; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stages_of_a_release_with_other_keys_are_listed_and_reported(tmp_path, capsys):
    """Version 3 of the schema called the width of a model `width`, and stages lie beside those of today."""
    sweep = FakeSweep(tmp_path)
    for number, shape in enumerate(({"width": 64, "ffn": 256}, {"hidden_size": 64, "intermediate_size": 256}), 1):
        stage = sweep.stage("sft", number, {"eval/perplexity": 2.0 + number})
        (stage / "config.yaml").write_text(yaml.safe_dump(config(model=shape)))
        sweep.point([stage], settings=config(model=shape, zero={"bucket_elements": number}), name=f"point{number}")
    assert main([str(sweep.place)]) == 0
    assert status(["--once", str(tmp_path)]) == 0
    assert "perplexity 3" in (shown := capsys.readouterr().out) and "perplexity 4" in shown
