"""The table of stages: what the files say, what SLURM says, and files that say nothing."""

import io
import json
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.catalog.display import display_of
from rlhf.catalog.stage import known_metrics, stage_kinds
from rlhf.cli import status
from rlhf.cli.status import Watch, main, render, steps_per_second
from rlhf.config.terminal import format_duration
from rlhf.experiment.files import TAIL_BYTES

SFT, REWARD, PPO, PPO_2 = ("sft-" + "0" * 12, "reward-" + "1" * 12, "ppo-" + "2" * 12, "ppo-" + "3" * 12)


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """Whatever this machine has, tests have no squeue but the one they make."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def stage(root):
    """`stage(name, state=..., ...)` writes a stage's directory; `metrics` are the rows, `result` the final figures."""

    def write(name, metrics=(), result=None, age=1.0, **fields):
        place = root / "stages" / name
        place.mkdir(parents=True, exist_ok=True)
        known = {"stage": name.split("-", maxsplit=1)[0], "attempts": 1, "reason": None, "heartbeat": time.time() - age}
        (place / "status.json").write_text(json.dumps(known | fields))
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        if result is not None:
            (place / "result.json").write_text(json.dumps({"stage": known["stage"], "seconds": 75.0, "metrics": result}))
        return place

    return write


@pytest.fixture
def point(root):
    """`point(name, *stages)` writes a point of the sweep kl with links to its stages, which need not be there."""

    def write(name, *stages, sweep="kl", **states):
        place = root / "sweeps" / sweep / name
        (place / "stages").mkdir(parents=True)
        for link in stages:
            (place / "stages" / link).symlink_to(os.path.relpath(root / "stages" / link, place / "stages"))
        listed = {
            link.split("-", maxsplit=1)[0]: {"directory": f"elsewhere/{link}", "state": "planned"}
            | states.get(link.split("-", maxsplit=1)[0], {})
            for link in stages
        }
        (place / "summary.json").write_text(json.dumps({"point": name, "state": "planned", "stages": listed}))
        return place

    return write


@pytest.fixture
def squeue(tmp_path):
    """`squeue(script)` puts a squeue on PATH; it writes what it was asked into the file that is returned."""

    def write(script):
        log = tmp_path / "asked"
        file = tmp_path / "bin" / "squeue"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{script}\n')
        file.chmod(0o755)
        return log

    return write


def rows(steps, start=1000.0, seconds=2.0, **metrics):
    return [{"step": step, "time": start + seconds * step, **metrics} for step in steps]


def stages(place):
    """What --json says, by name."""
    return {stage.name: stage for stage in Watch(place).look().stages}


def shown(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_figures_are_metrics():
    assert all(set(display_of(kind).headline) <= set(display_of(kind).metrics) for kind in stage_kinds())
    assert "kl/sequence" in known_metrics()


def test_a_running_stage_has_its_speed_its_figures_and_the_time_left(root, stage):
    stage(
        PPO, state="running", step=20, total=40, host="n1", pid=7, job="12_3", attempts=2, age=3,
        metrics=[*rows(range(1, 20)), *rows([20], **{"reward/mean": 1.25, "kl/sequence": 4.0, "eval/accuracy": 0.5})],
    )  # fmt: skip
    (seen,) = stages(root).values()
    assert (seen.state, seen.stage, seen.step, seen.total, seen.attempts) == ("running", "ppo", 20, 40, 2)
    assert (seen.figure, seen.value, seen.kl) == ("reward/mean", 1.25, 4.0)
    assert (seen.host, seen.job, seen.reason) == ("n1", "12_3", None)
    assert seen.rate == pytest.approx(0.5)
    assert seen.left_s == pytest.approx(40)
    assert seen.heartbeat_age_s == pytest.approx(3, abs=1)


def plan_of(seconds, steps=40, devices=2, price=3.6):
    """What plan.json and summary.json keep of a stage's plan."""
    phases = {"load": 0.25 * seconds, "update": 0.5 * seconds, "evaluate": 0.25 * seconds}
    known = {"steps": steps, "seconds": seconds, "phases": phases, "evaluations": 2, "gib_per_gpu": 1.0}
    return known | {"devices": devices, "price": price}


def test_what_is_left_of_a_running_stage_is_its_plan_corrected_by_its_own_speed(root, stage):
    place = stage(PPO, state="running", step=20, total=40, seconds=50, metrics=rows(range(1, 21)))
    (place / "plan.json").write_text(json.dumps(plan_of(80.0)))  # a step a second; it takes two
    (seen,) = stages(root).values()
    assert seen.left_s == pytest.approx(20 * 2 + 2 * 10)  # and the last evaluation, which takes twice as long too
    assert (seen.spent_s, seen.planned.seconds, seen.planned.dollars(3600)) == (50, 80.0, 7.2)


@pytest.mark.parametrize("content", ["", "[]", '{"devices": "many"}', '{"devices": 1, "price": 1}'])
def test_a_damaged_plan_is_no_plan(root, stage, content):
    place = stage(PPO, state="running", step=20, total=40, metrics=rows(range(1, 21)))
    (place / "plan.json").write_text(content)
    assert stages(root)[PPO].left_s == pytest.approx(40)


def test_a_sweep_says_what_is_left_and_what_it_costs(root, stage, point, capsys):
    done = stage(SFT, state="done", result={})
    (done / "plan.json").write_text(json.dumps(plan_of(37.5)))  # half of the 75 seconds that it took
    point("ppo.kl_coef=0.1", SFT, PPO, ppo={"planned": plan_of(1800.0)})
    file = root / "sweeps" / "kl" / "ppo.kl_coef=0.1" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at_once": 1}))
    assert stages(root)[PPO].left_s == pytest.approx(3600)
    out = shown(capsys, root, "--once")
    assert "sweep kl: 0 of 1 point done, 1 planned; about 1 h 00 m left, $0.15 spent, $7.20 to come" in out


def test_the_best_figure_that_there_is(root, stage):
    stage(REWARD, state="running", metrics=rows([1], **{"train/loss": 0.7, "train/accuracy": 0.6}))
    stage(SFT, state="done", metrics=rows([1], **{"train/loss": 0.7}), result={"eval/perplexity": 1.4})
    stage(PPO, state="running", metrics=rows([1], **{"reward/mean": 2.0}) + rows([2], **{"reward/mean": None}))
    seen = stages(root)
    assert (seen[REWARD].figure, seen[REWARD].value) == ("train/accuracy", 0.6)
    assert (seen[SFT].figure, seen[SFT].value) == ("eval/perplexity", 1.4)
    assert (seen[PPO].figure, seen[PPO].value, seen[PPO].step) == ("reward/mean", 2.0, 2)


def test_a_benchmark_has_its_rate(root, stage):
    name = "bench-0123456789ab"
    stage(name, stage="bench", state="running", metrics=rows([1], **{"throughput/rollout_samples_per_s": 40.0}))
    seen = stages(root)[name]
    assert (seen.stage, seen.figure, seen.value) == ("bench", "throughput/rollout_samples_per_s", 40.0)


@pytest.mark.parametrize(
    ("metrics", "rate"),
    [
        ([], None),
        (rows([1]), None),
        (rows([1, 1]), None),
        (rows([1, 2, 3]), 0.5),
        (rows([1, 3, 5]), 0.5),
        ([*rows([1, 2, 3, 4]), *rows([5, 6, 7], start=90_000)], 0.5),  # stopped for a day
        ([*rows([1, 2, 3, 4]), *rows([3, 4, 5], start=90_000)], 0.5),  # and the last two steps taken again
        ([*rows([1, 2, 3, 4, 5]), {"step": 6, "time": 1000 + 10 + 7}], 1 / 3),  # an evaluation counts
        ([{"step": 1}, {"step": 2, "time": None}, *rows([3, 4])], 0.5),
    ],
)
def test_the_pace_leaves_out_pauses(metrics, rate):
    assert steps_per_second(metrics) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"state": "queued", "age": 5000}, "queued"),
        ({"state": "starting", "age": 100}, "starting"),
        ({"state": "running"}, "running"),
        ({"state": "running", "age": 61}, "silent"),
        ({"state": "running", "age": -500}, "running"),  # another machine's clock
        ({"state": "stopped", "age": 5000}, "stopped"),
        ({"state": "failed", "age": 5000, "reason": "sft: rank 1 failed: OutOfMemoryError"}, "failed"),
        ({"state": "done", "result": {}}, "done"),
        ({"state": "running", "age": 61, "result": {}}, "done"),  # result.json decides
    ],
)
def test_states(root, stage, fields, state):
    stage(SFT, **fields)
    (seen,) = stages(root).values()
    assert (seen.state, seen.reason) == (state, fields.get("reason"))
    assert seen.left_s is None
    assert seen.heartbeat_age_s >= 0
    assert seen.seconds == (75.0 if state == "done" else None)


def test_a_finished_stage_needs_only_its_result(root, stage):
    (stage(SFT, state="done", result={}) / "status.json").unlink()
    assert stages(root)[SFT].state == "done"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("status.json", None, "status.json: it is missing"),
        ("status.json", "", "status.json is cut off or damaged"),
        ("status.json", '{"state": "runn', "status.json is cut off or damaged"),
        ("status.json", "[1]", "status.json holds no JSON object"),
        ("status.json", "{}", "status.json holds nothing"),
        ("status.json", "[" * 100_000, "status.json is cut off or damaged"),
        ("status.json", b"\xff\xfe\x00", "status.json is cut off or damaged"),
        ("status.json", '{"state": "waltzing"}', "status.json: there is no state 'waltzing'"),
        ("status.json", '{"state": ["running"]}', "status.json: there is no state"),
        ("status.json", '{"state": "done"}', "result.json: it is missing"),
        ("status.json", '{"state": "running", "heartbeat": "noon"}', "heartbeat: 'noon' is no number"),
        ("status.json", '{"state": "running", "step": true}', "step: True is no number"),
        ("result.json", '{"stage": "sf', "result.json is cut off or damaged"),
        ("metrics.jsonl", "what\nis\nthis\n", "metrics.jsonl: none of its last 3 lines can be read"),
        ("metrics.jsonl", '{"step": 1, "train/loss": "high"}\n', "train/loss: 'high' is no number"),
    ],
)
def test_damaged_files_are_told_and_break_nothing(root, stage, capsys, file, content, reason):
    place = stage(SFT, state="running") / file
    stage(PPO, state="running", step=1, total=2)
    if content is None:
        place.unlink()
    else:
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    seen = stages(root)
    assert seen[SFT].state == "damaged"
    assert seen[SFT].reason.startswith(reason)
    assert seen[PPO].state == "running"
    assert seen[SFT].reason in shown(capsys, root)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400])
def test_numbers_that_are_none_are_left_out(root, stage, capsys, value):
    stage(
        PPO,
        state="running",
        step=value,
        total=value,
        metrics=rows([3], **{"reward/mean": value, "throughput/samples_per_s": 1.0}),
    )
    seen = stages(root)[PPO]
    assert (seen.step, seen.total, seen.figure) == (3, None, "throughput/samples_per_s")
    json.loads(shown(capsys, root, "--json"), parse_constant=pytest.fail)


def test_a_file_where_a_stage_should_be_is_damage(root, stage):
    stage(SFT, state="running")
    (root / "stages" / PPO).write_text("")
    assert stages(root)[PPO].state == "damaged"


def test_a_last_line_that_was_cut_off_is_left_out(root, stage):
    place = stage(PPO, state="running", metrics=rows(range(1, 5), **{"reward/mean": 1.0}))
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "time": 10')
    seen = stages(root)[PPO]
    assert (seen.state, seen.step, seen.rate) == ("running", 4, pytest.approx(0.5))


def test_only_the_end_of_a_long_file_is_read(root, stage, monkeypatch):
    place = stage(PPO, state="running", metrics=rows(range(1, 5000), **{"reward/mean": 1.0}))
    size = (place / "metrics.jsonl").stat().st_size
    assert size > 3 * TAIL_BYTES
    read, plain = [], Path.open

    def opened(file, mode="r", **options):
        return Counted(file, mode, read) if file.name == "metrics.jsonl" else plain(file, mode, **options)

    monkeypatch.setattr(Path, "open", opened)
    assert stages(root)[PPO].step == 4999
    assert sum(read) == TAIL_BYTES


class Counted(io.FileIO):
    """A file that notes how much is read of it."""

    def __init__(self, file, mode, read):
        super().__init__(file, mode)
        self.seen = read

    def read(self, size=-1):
        content = super().read(size)
        self.seen.append(len(content))
        return content


def test_a_line_longer_than_what_is_read_is_no_damage(root, stage):
    place = stage(PPO, state="running", step=1, total=2)
    (place / "metrics.jsonl").write_text(json.dumps({"step": 1, "note": "x" * 2 * TAIL_BYTES}) + "\n")
    assert stages(root)[PPO].state == "running"


def test_a_sweep_lists_each_stage_once_and_counts_points(root, stage, point, capsys):
    stage(SFT, state="done", result={})
    stage(REWARD, state="done", result={})
    stage(PPO, state="failed", reason="out of memory")
    point("ppo.kl_coef=0.1", SFT, REWARD, PPO)
    point("ppo.kl_coef=0.2", SFT, REWARD, PPO_2)
    point("ppo.kl_coef=0.3", SFT, REWARD)
    for place in (root / "sweeps" / "kl", root):
        seen = stages(place)
        assert {name: s.state for name, s in seen.items()} == {SFT: "done", REWARD: "done", PPO: "failed", PPO_2: "planned"}
        assert [len(seen[name].points) for name in (SFT, REWARD, PPO, PPO_2)] == [3, 3, 1, 1]
        assert seen[PPO].points == ["ppo.kl_coef=0.1"]
    table = shown(capsys, root / "sweeps" / "kl")
    assert table.splitlines()[0] == "sweep kl: 1 of 3 points done, 1 failed, 1 planned"
    assert table.count(SFT) == 1
    assert "out of memory" in table


def test_a_stage_that_was_skipped_says_why_until_it_starts(root, stage, point):
    stage(SFT, state="failed", reason="boom")
    place = point("seed=1", SFT, PPO, ppo={"state": "skipped", "reason": "sft failed"})
    assert (stages(root)[PPO].state, stages(root)[PPO].reason) == ("skipped", "sft failed")
    assert stages(place)[PPO].state == "skipped"
    stage(PPO, state="starting")
    assert stages(root)[PPO].state == "starting"


def test_a_damaged_summary_leaves_the_links(root, stage, point, capsys):
    stage(SFT, state="running")
    (point("seed=1", SFT, PPO) / "summary.json").write_text('{"point": "se')
    assert shown(capsys, root).startswith("sweep kl: 0 of 1 point done, 1 running\n")
    assert set(stages(root)) == {SFT, PPO}


def test_every_kind_of_directory(root, stage, point):
    stage(SFT, state="running")
    stage(PPO, state="queued")
    inside = point("seed=1", SFT)
    run = root / "runs" / "now-rlhf"
    (run / "stages").mkdir(parents=True)
    (run / "stages" / PPO).symlink_to(Path("../../../stages") / PPO)
    for place, names in (
        (root, {SFT, PPO}),
        (root / "stages", {SFT, PPO}),
        (root / "sweeps" / "kl", {SFT}),
        (inside, {SFT}),
        (inside / "stages" / SFT, {SFT}),
        (run, {PPO}),
        (root / "stages" / PPO, {PPO}),
    ):
        assert set(stages(place)) == names, place
    copy = root.parent / "best"
    (root / "stages" / SFT).rename(copy)
    assert stages(copy)["best"].stage == "sft"


def test_rows_that_need_a_look_come_first(root, stage):
    for number, state in enumerate(("done", "queued", "running", "failed")):
        stage(f"reward-{number:012}", state=state, result={} if state == "done" else None)
    stage(SFT, state="running")
    order = [(s.stage, s.state) for s in Watch(root).look().stages]
    assert order == [
        ("reward", "failed"), ("sft", "running"), ("reward", "running"), ("reward", "queued"), ("reward", "done"),
    ]  # fmt: skip


def test_json_round_trip(root, stage, point, capsys):
    stage(SFT, state="done", result={"eval/perplexity": 1.4}, metrics=rows([1, 2]), step=2, total=2)
    point("seed=1", SFT, PPO)
    listed = {entry["name"]: entry for entry in json.loads(shown(capsys, root, "--json"))}
    assert {status.Stage(**entry).name for entry in listed.values()} == {SFT, PPO}
    done, planned = listed[SFT], listed[PPO]
    assert done["heartbeat_age_s"] > 0
    expected = {"state": "done", "step": 2, "total": 2, "seconds": 75.0, "value": 1.4, "rate": 0.5, "points": ["seed=1"]}
    assert {key: done[key] for key in expected} == expected
    assert (planned["state"], planned["step"], planned["points"]) == ("planned", None, ["seed=1"])


def test_the_table_in_words(root, stage, capsys):
    stage(PPO, state="running", step=10, total=40, host="n1", metrics=rows(range(1, 11), **{"reward/mean": 1.256}))
    line = next(line for line in shown(capsys, root).splitlines() if PPO in line)
    assert line.split() == [PPO, "running", "10/40", "2.0", "s/step", "1", "m", "00", "s", "score", "1.26", "n1", "1",
                            "1", "s", "ago"]  # fmt: skip
    heads = [line.split() for line in shown(capsys, root).splitlines() if "state" in line]
    assert heads == [["stage", "state", "step", "rate", "left", "figure", "node", "try", "heard"]]


def test_a_stage_of_one_point_says_what_sets_that_point_apart(root, stage, point, capsys):
    point("ppo.kl_coef=0.1,seed=1", SFT, PPO)
    point("ppo.kl_coef=0.3,seed=1", SFT, PPO_2)
    lines = {line.split()[0]: line.split() for line in shown(capsys, root).splitlines()[2:]}
    assert lines[SFT] == [SFT, "planned", "2", "of", "2"]
    assert (lines[PPO], lines[PPO_2]) == ([PPO, "planned", "kl_coef=0.1"], [PPO_2, "planned", "kl_coef=0.3"])


@pytest.mark.parametrize(("width", "gone"), [(240, set()), (92, {"try"}), (80, {"try", "job", "heard"})])
def test_a_narrow_terminal_shows_fewer_columns_not_less_of_each(root, stage, point, width, gone):
    stage(PPO, state="running", step=100, total=477, host="n1", job="103_0", metrics=rows(range(90, 101)))
    point("seed=1", PPO)
    point("seed=2", PPO)
    console = Console(width=width, file=io.StringIO())
    console.print(render(Watch(root).look(), width))
    _, heads, row = console.file.getvalue().splitlines()
    everything = {"stage", "point", "state", "step", "rate", "left", "node", "job", "try", "heard"}
    assert set(heads.split()) == everything - gone
    assert "…" not in heads + row


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 m 00 s"), (3600, "1 h 00 m"), (7290, "2 h 01 m"), (90000, "1 d 1 h")],
)
def test_durations(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize("make", [lambda place: None, lambda place: place.mkdir(), lambda place: place.write_text("")])
def test_nothing_to_show_is_one_line(tmp_path, capsys, make):
    make(tmp_path / "nothing")
    assert main([str(tmp_path / "nothing")]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n"), error.startswith(f"error: DIR={tmp_path / 'nothing'}: ")) == ("", 1, True)


class TestSlurm:
    """Jobs that SLURM knows, and jobs that it has forgotten."""

    def test_why_a_job_waits_and_where_it_begins(self, root, stage, squeue):
        stage(SFT, state="queued", job="11")
        stage(REWARD, state="queued", job="12_1")
        stage(PPO, state="running", job="13")
        stage(PPO_2, state="stopped", job="14")
        asked = squeue('echo "11|PENDING|Priority|0:00|"\necho "12_1|RUNNING|None|0:03|n[1-2]"\n'
                       'echo "13|RUNNING|None|5:00|n3"\necho "14|PENDING|BeginTime|0:00|"')  # fmt: skip
        seen = stages(root)
        assert (seen[SFT].state, seen[SFT].reason) == ("queued", "Priority")
        assert (seen[REWARD].state, seen[REWARD].host) == ("starting", "n[1-2]")
        assert (seen[PPO].state, seen[PPO].host) == ("running", "n3")
        assert (seen[PPO_2].state, seen[PPO_2].reason) == ("queued", "BeginTime")
        assert asked.read_text().split() == ["--noheader", "--array", "--jobs=11,12_1,13,14", "--format=%i|%T|%r|%M|%N"]

    @pytest.mark.parametrize("script", ["true", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'])
    def test_a_job_that_slurm_has_forgotten_is_lost(self, root, stage, squeue, script):
        stage(SFT, state="queued", job="11")
        stage(PPO, state="running", job="12")
        stage(PPO_2, state="running", job="13", age=100)
        squeue(script)
        seen = stages(root)
        assert (seen[SFT].state, seen[PPO].state, seen[PPO_2].state) == ("lost", "running", "silent")
        assert seen[SFT].reason == "SLURM no longer knows job 11; type the same command again"
        assert seen[PPO_2].reason == "SLURM no longer knows job 13; type the same command again"

    def test_one_forgotten_job_does_not_hide_the_others(self, root, stage, squeue):
        stage(SFT, state="queued", job="11")
        stage(PPO, state="queued", job="12")
        refuse = 'echo "Invalid job id specified" >&2; exit 1'
        squeue(f'case "$3" in --jobs=12) echo "12|PENDING|Dependency|0:00|";; *) {refuse};; esac')
        seen = stages(root)
        assert (seen[SFT].state, seen[PPO].state, seen[PPO].reason) == ("lost", "queued", "Dependency")

    def test_a_job_that_was_cancelled_is_lost(self, root, stage, squeue):
        stage(SFT, state="queued", job="11")
        squeue('echo "11|CANCELLED|None|0:00|"')
        seen = stages(root)[SFT]
        assert (seen.state, seen.reason) == ("lost", "SLURM says CANCELLED of job 11; type the same command again")

    @pytest.mark.parametrize("script", ["echo 'Unable to contact slurm controller' >&2; exit 1", "echo nonsense; exit 3"])
    def test_a_slurm_that_does_not_answer_changes_nothing(self, root, stage, squeue, script):
        stage(SFT, state="queued", job="11")
        squeue(script)
        assert stages(root)[SFT].state == "queued"

    def test_it_is_not_asked_without_need(self, root, stage, squeue, monkeypatch):
        stage(SFT, state="done", job="11", result={})
        stage(REWARD, state="failed", job="12")
        asked = squeue('echo "13|PENDING|Priority|0:00|"')
        watch = Watch(root)
        watch.look()
        assert not asked.exists()
        stage(PPO, state="queued", job="13")
        for _ in range(3):
            assert {s.name: s.reason for s in watch.look().stages}[PPO] == "Priority"
        assert asked.read_text().count("\n") == 1
        monkeypatch.setattr(status, "SQUEUE_PERIOD_S", 0.0)
        watch.look()
        assert asked.read_text().count("\n") == 2


def test_a_terminal_sees_changes_until_all_is_settled(root, stage, monkeypatch):
    stage(PPO, state="running", step=1, total=2)
    code = f"from rlhf.cli import status; status.PERIOD_S = 0.05; raise SystemExit(status.main([{str(root)!r}]))"
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}, cwd=Path.cwd()
    )
    os.close(theirs)
    seen = b""
    while b"1/2" not in seen:
        seen += os.read(ours, 65536)
    stage(PPO, state="failed", step=2, total=2, reason="boom")
    with pytest.raises(OSError, match="Input/output"):  # the end of a terminal
        while True:
            seen += os.read(ours, 65536)
    assert child.wait(timeout=10) == 0
    assert b"2/2" in seen
    assert b"boom" in seen


def test_the_command_and_its_help(root, stage):
    stage(SFT, state="running", step=1, total=2)
    command = [sys.executable, "-m", "rlhf", "status"]
    done = subprocess.run([*command, str(root)], capture_output=True, text=True, check=True)
    assert "1/2" in done.stdout
    assert "\x1b" not in done.stdout
    assert "--json" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout


def test_it_loads_nothing_heavy():
    heavy = ("torch", "deepspeed", "transformers", "wandb", "datasets", "hydra", "numpy")
    code = f"import sys, rlhf.cli.status; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
