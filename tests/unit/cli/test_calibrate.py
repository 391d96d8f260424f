"""`plan --calibrate` writes a machine's own constants, and a plan by them is as long as the stages were."""

import json

import pytest
import yaml

from rlhf.cli.plan import main
from rlhf.cli.prepare import plan_tasks
from rlhf.config.errors import ConfigError
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import build_spec, start_attempt
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.sweep import Task
from rlhf.planner.constants import load_constants
from rlhf.planner.remaining import summarize_plan

# Seconds that phases of a step took, about three times as long as assumed, and those before the first step.
TRAIN, ROLLOUT, SCORE, UPDATE, START = 0.15, 1.5, 0.58, 3.5, 6.0
STEPS = 20


@pytest.fixture
def finished(make_config, tmp_path):
    """`finished(stage, rows, start=..., *overrides)` leaves a finished stage that evaluated as slowly as it trained;
    returns its configuration and the seconds that it took."""

    def make(stage, phases, *overrides, start=START):
        config = make_config(f"output_root={tmp_path}", f"{stage}.max_steps={STEPS}", *overrides)
        (node,) = (node for node in build_graph(config) if node.stage == stage)
        task = Task(node, config)
        planned = summarize_plan(plan_tasks([task])[task.key])
        start_attempt(build_spec(node, config, planned))
        rows = [{"step": step, "time": float(step), **phases} for step in range(1, STEPS + 1)]
        node.directory.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        pace = sum(phases.values())
        seconds = start + STEPS * pace + planned.phases["evaluate"] * pace / planned.step_seconds + planned.phases["save"]
        (node.directory.path / "result.json").write_text(json.dumps(Result(stage, node.fingerprint, seconds, {}).__dict__))
        return config, seconds

    return make


def planned_seconds(config, stage, constants=None):
    """What the stage is planned to take."""
    config.plan.constants = None if constants is None else str(constants)
    (node,) = (node for node in build_graph(config) if node.stage == stage)
    task = Task(node, config)
    return plan_tasks([task])[task.key]


def test_the_plan_of_the_same_stage_becomes_what_was_spent(finished, tmp_path, capsys):
    sft, spent_sft = finished("sft", {"time/step_s": TRAIN})
    ppo, spent = finished("ppo", {"time/rollout_s": ROLLOUT, "time/score_s": SCORE, "time/train_s": UPDATE})
    assert main(["--calibrate", str(tmp_path)]) == 0
    file = tmp_path / "constants.yaml"
    assert f"plan.constants={file}" in capsys.readouterr().out.replace("\n", "")
    after = planned_seconds(ppo, "ppo", file)
    assert after.phases["rollout"] == pytest.approx(STEPS * ROLLOUT, rel=1e-2)
    assert sum(after.phases[phase] for phase in ("score", "update")) + planned_seconds(sft, "sft", file).phases[
        "train"
    ] == pytest.approx(STEPS * (SCORE + UPDATE + TRAIN), rel=1e-2)
    assert after.seconds["load"]["start"] == pytest.approx(START, rel=0.02)
    for stage, config, took in (("sft", sft, spent_sft), ("ppo", ppo, spent)):
        before, calibrated = (planned_seconds(config, stage, given).total_seconds for given in (None, file))
        assert abs(calibrated - took) < 0.3 * abs(before - took)


def test_of_two_kinds_of_devices_the_one_that_worked_longest_is_measured(finished, tmp_path):
    finished("sft", {"time/step_s": 100 * TRAIN}, "hardware.gpu=other")
    finished("sft", {"time/step_s": 1e-3}, "seed=5", start=0.1)
    assert main(["--calibrate", str(tmp_path)]) == 0
    text = (tmp_path / "constants.yaml").read_text()
    assert text.startswith("# Measured on 1 stage of other")
    assert set(yaml.safe_load(text)) == {
        "matmul_efficiency", "memory_efficiency", "decode_efficiency", "launch_seconds", "startup_seconds",
    }  # fmt: skip


def test_a_stage_that_cannot_be_read_is_named_and_left_out(finished, tmp_path, capsys):
    finished("sft", {"time/step_s": TRAIN})
    for name, content in (("sft-000000000000", "{"), ("sft-000000000001", '{"config": {"stages": ["sft"]}}')):
        place = tmp_path / "stages" / name
        place.mkdir()
        (place / "spec.json").write_text(content)
        (place / "result.json").write_text('{"seconds": 1.0}')
    assert main(["--calibrate", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "left out: sft-000000000000" in shown
    assert "left out: sft-000000000001" in shown


def test_without_a_measured_step_nothing_is_written(tmp_path, capsys):
    assert main(["--calibrate", str(tmp_path)]) == 2
    assert "no finished stage with a measured step" in capsys.readouterr().err
    assert not (tmp_path / "constants.yaml").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "it cannot be read (FileNotFoundError)"),
        ("matmul_efficiency: [", "it cannot be read"),
        ("[1]", "it is no mapping of constants"),
        ("mfu: 0.4", "there is no constant mfu, but decode_efficiency"),
        ("matmul_efficiency: 0", "matmul_efficiency is 0, and should be a number above 0"),
        ("matmul_efficiency: fast", "matmul_efficiency is 'fast', and should be a number above 0"),
        ("matmul_efficiency: .nan", "matmul_efficiency is nan, and should be a number above 0"),
    ],
)
def test_a_bad_file_is_refused_by_key_value_and_fix(content, problem, tmp_path):
    file = tmp_path / "bad.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as refused:
        load_constants(str(file), "cpu")
    assert (refused.value.key, refused.value.value) == ("plan.constants", str(file))
    assert problem in refused.value.problem
    assert refused.value.fix == "write it with python -m rlhf plan --calibrate outputs/"


def test_a_plan_by_a_bad_file_is_refused(tmp_path, capsys):
    assert main(["stage=sft", f"output_root={tmp_path}", "plan.constants=nowhere.yaml"]) == 2
    assert "error: plan.constants=nowhere.yaml: it cannot be read" in capsys.readouterr().err
