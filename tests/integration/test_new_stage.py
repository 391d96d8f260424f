"""A stage of somebody else's is one file of Python and one of YAML, as docs/extending.md shows it: it is planned, run,
resumed, shown and reported without a change to this package, with keys and metrics of its own."""

import json
import re
import signal
from pathlib import Path

import pytest
from support.command import ROOT
from support.ranks import run_forked

PAGE = (ROOT / "docs" / "extending.md").read_text()
SHOWN = PAGE[PAGE.index("## A stage\n") : PAGE.index("## A metric or a key")]
PYTHON, YAML = (re.search(rf"```{language}\n(.*?)```", SHOWN, re.S).group(1) for language in ("python", "yaml"))
STEP = "    def step(share):\n"
# The stage that the page shows, which is killed where DIE_AT says so.
MORTAL = PYTHON.replace(
    STEP,
    f"""    import os, signal
    steps = []

{STEP}        steps.append(share)
        if os.environ.get("DIE_AT") == str(len(steps)):
            os.kill(os.getpid(), signal.SIGKILL)
""",
)
SMALL = (
    "--config-dir=conf", "stage=relearn", "data.demo.demonstrations=60", "data.demo.rounds=1",
    "data.demo.heldout_prompts=8", "sft.max_steps=4", "sft.batch_size=16", "checkpoint.every_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("new")
    (found / "lab").mkdir()
    (found / "lab" / "relearn.py").write_text(MORTAL)
    (found / "conf" / "stage").mkdir(parents=True)
    (found / "conf" / "stage" / "relearn.yaml").write_text(YAML)
    return found


@pytest.fixture(scope="module")
def command(place):
    def call(*arguments, **environment):
        """What the command line says, and its exit code."""
        known = {"HOME": str(place), "PYTHONPATH": str(place), "COLUMNS": "200", **environment}
        return run_forked(*arguments, cwd=place, **known)

    return call


def directory(place) -> Path:
    (found,) = (place / "outputs" / "stages").glob("lab.relearn-*")
    return found


def test_a_plan_counts_its_steps_and_its_work(command, place):
    code, said = command(*SMALL, "dry_run=true")
    assert code == 0, said
    sft, own = (next(line for line in said.splitlines() if f" {name}-" in line) for name in ("sft", "lab.relearn"))
    assert sft.split()[-2:] == own.split()[-2:]  # as many steps of the same work
    assert "1 sft, 1 lab.relearn to run" in said
    assert not (place / "outputs" / "stages").exists()


def test_a_stage_that_cannot_be_found_is_refused_in_a_line(command):
    code, said = command("stages=[sft,lab.unlearn]", "dry_run=true")
    assert code == 2 and "there is no such choice" in said and "Traceback" not in said, said


def test_its_keys_are_checked_before_anything_starts(command, place):
    wrong = {
        "relearn.dropout=0.7": "relearn.dropout=0.7: out of range; give a number at least 0 and at most 0.5",
        "relearn.order=random": "relearn.order=random: there is no such choice; choose one of same, reversed",
        "relearn.epochs=many": "relearn.epochs=many: wrong type; give a number",
        "relearn.gradient_checkpointing=auto": "relearn.gradient_checkpointing=auto: there is no such choice",
        "+relearn.passes=2": "relearn.passes=2: there is no such key",
        "relearn.batch_size=15": "relearn.micro_batch_size",
    }
    for word, line in wrong.items():
        code, said = command(*SMALL, word, "relearn.micro_batch_size=2", "dry_run=true")
        assert code == 2 and line in said and "Traceback" not in said, said
    code, said = command("relearn.order=same", "dry_run=true")  # the whole pipeline has no such stage
    assert code == 2 and "relearn.order" in said, said


def test_it_goes_on_where_it_was_killed(command, place):
    code, said = command(*SMALL, DIE_AT="3")
    assert code == -signal.SIGKILL, said
    assert [found.name for found in sorted(directory(place).glob("checkpoints/step-*"))][-1] == "step-000002"
    code, said = command(*SMALL)
    assert code == 0 and "relearnt perplexity" in said and "loss held out, nats" in said, said
    lines = [json.loads(line) for line in (directory(place) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    result = json.loads((directory(place) / "result.json").read_text())
    assert result["stage"] == "lab.relearn" and result["metrics"]["eval/perplexity"] > 1
    assert "# A language model that was taught twice" in (directory(place) / "model" / "README.md").read_text()


def test_another_value_of_a_key_that_it_reads_is_another_stage(command):
    for word in ("relearn.learning_rate=0.01", "relearn.order=reversed"):
        code, said = command(*SMALL, word, "dry_run=true")
        assert code == 0 and "1 lab.relearn to run, 1 stage done before" in said, said
    for word in ("ppo.gamma=0.9", "relearn.note=again", "relearn.max_nonfinite=7"):
        code, said = command(*SMALL, word, "dry_run=true")
        assert code == 0 and "nothing to run" in said, said


def test_status_and_report_show_it(command, place):
    """With labels and units of its own, for other people too, who do not have its module."""
    code, said = command("status", "outputs", PYTHONPATH=str(ROOT))
    (row,) = [line for line in said.splitlines() if line.startswith(directory(place).name)]
    assert code == 0 and re.search(r"loss held out \d\S* nats", row), said
    code, said = command("report", "outputs/runs/latest", PYTHONPATH=str(ROOT))
    assert code == 0 and "relearnt perplexity" in said and "loss held out, nats" in said, said
    (report,) = (place / "outputs").rglob("report.html")
    page = report.read_text()
    assert all(text in page for text in (directory(place).name, "Second loss", "nats per token", "loss held out, nats"))
    (table,) = (place / "outputs").rglob("table.json")
    rows = {(row["stage"], row["metric"]): row["unit"] for row in json.loads(table.read_text())}
    assert rows["lab.relearn", "eval/loss"] == "nats" and ("lab.relearn", "eval/perplexity") in rows
