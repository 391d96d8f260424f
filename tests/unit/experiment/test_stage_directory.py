"""The directory of a stage: which state its files tell, and that no other module reads them in a way of its own."""

import ast
import json
import time
from pathlib import Path

import pytest

import rlhf
from rlhf.experiment.stage_directory import StageDirectory, find_stages, stage_path

FILES = ("result.json", "status.json", "spec.json", "metrics.jsonl", "samples.jsonl", "environment.json", "plan.json")
# Where each name may stand: result.json marks a stage that is done, which paths of models ask for as well.
HOMES = {Path("experiment/stage_directory.py"), Path("config/directories.py")}


@pytest.mark.parametrize(
    ("status", "result", "state", "reason"),
    [
        (None, None, "damaged", "status.json: it is missing"),
        ({"state": "running", "heartbeat": 1.0}, None, "running", None),
        ({"state": "running", "heartbeat": 600.0}, None, "silent", None),
        ({"state": "failed", "reason": "boom"}, None, "failed", "boom"),
        ({"state": "done"}, None, "damaged", "result.json: it is missing, although status.json says done"),
        ({"state": "waltzing"}, None, "damaged", "status.json: there is no state 'waltzing'"),
        ({"state": "running", "heartbeat": 5000.0}, {"stage": "sft"}, "done", None),
        (None, {"stage": "sft"}, "done", None),
        ({"state": "running"}, {}, "damaged", "result.json holds nothing"),
    ],
)
def test_a_state_is_that_of_both_files(tmp_path, status, result, state, reason):
    if status and "heartbeat" in status:  # seconds ago
        status = status | {"heartbeat": time.time() - status["heartbeat"]}
    for name, content in (("status.json", status), ("result.json", result)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    found = StageDirectory(tmp_path).read_state()
    assert (found.name, found.reason) == (state, reason)


def test_a_stage_without_a_directory_is_planned_and_one_with_a_result_is_done_whatever_its_status_holds(tmp_path):
    assert StageDirectory(tmp_path / "sft-0").read_state().name == "planned"
    (tmp_path / "result.json").write_text('{"stage": "sft"}')
    (tmp_path / "status.json").write_text("{")
    found = StageDirectory(tmp_path).read_state()
    assert found.name == "done"
    assert found.notes == ("status.json is cut off or damaged: no JSON object",)


def test_launched_stages_are_found_by_name(tmp_path):
    for stage, fingerprint in (("sft", "1" * 64), ("ppo", "2" * 64)):
        directory = StageDirectory(stage_path(str(tmp_path), stage, fingerprint))
        directory.path.mkdir(parents=True)
        directory.spec_file.write_text("{}")
    assert [found.path.name for found in find_stages(tmp_path)] == ["ppo-222222222222", "sft-111111111111"]
    assert [found.stage for found in find_stages(tmp_path)] == ["ppo", "sft"]


def test_the_files_of_a_stage_are_named_in_one_module():
    package = Path(rlhf.__file__).parent
    named = [
        f"{path.relative_to(package)}:{node.lineno} {node.value}"
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package) not in HOMES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split("/")[-1] in FILES
    ]
    assert named == []
