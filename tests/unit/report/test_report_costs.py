"""What stages took beside what was planned of them, in the report's lines and tables."""

import csv
import json

import pytest
from support.fake_sweep import FakeSweep, config, environment, write

from rlhf.cli.report import main
from rlhf.report.collect import collect
from rlhf.report.costs import cost_lines, stage_costs

PLAN = {"steps": 4, "seconds": 3600.0, "phases": {}, "evaluations": 2, "gib_per_gpu": 10.0, "devices": 8, "price": 4.0}


def plan(place, **changes):
    write(place / "plan.json", PLAN | changes)
    return place


@pytest.fixture
def sweep(tmp_path):
    """Two policies on one SFT and one reward model; one policy is not done."""
    sweep = FakeSweep(tmp_path)
    sft, reward = plan(sweep.stage("sft", 0)), plan(sweep.stage("reward", 0), devices=1)
    done = plan(sweep.stage("ppo", 1))
    running = plan(sweep.stage("ppo", 2, state="running", seconds=1800.0, lines=[{"step": 1, "time": 1.0}]))
    for stage in (sft, reward, done):
        result = json.loads((stage / "result.json").read_text())
        write(stage / "result.json", result | {"seconds": 7200.0})
    for seed, ppo in enumerate((done, running)):
        sweep.point([sft, reward, ppo], settings=config(seed=seed))
    return sweep


def test_planned_cost_stands_beside_spent_and_what_sharing_saved(sweep):
    assert cost_lines(collect(sweep.place)) == [
        "6.5 h, 38 GPU-hours, $152 spent so far",
        "of it 6 h, 34 GPU-hours, $136 by finished stages; 3 h, 17 GPU-hours, $68.00 planned for them",
        "sharing stages saved 4 h, 18 GPU-hours, $72.00",
    ]


def test_the_page_and_the_tables_have_a_row_per_stage(sweep, capsys):
    assert main([str(sweep.place)]) == 0
    assert "$152 spent so far" in capsys.readouterr().out
    page = (sweep.place / "report" / "report.html").read_text()
    assert "$72.00" in page
    assert page.count('<td class="number">$64.00</td>') == 2  # SFT and the policy that is done: 2 h on 8 GPUs
    with (sweep.place / "report" / "stages.csv").open(newline="") as stream:
        rows = {row["stage"]: row for row in csv.DictReader(stream)}
    running = rows["ppo-000000000002"]
    assert (running["state"], running["points"], running["planned_dollars"], running["spent_dollars"]) == (
        "running", "1", "32.0", "16.0",
    )  # fmt: skip


def test_a_stage_that_has_no_directory_yet_is_planned_by_its_point(tmp_path):
    sweep = FakeSweep(tmp_path)
    missing = tmp_path / "stages" / "ppo-000000000009"
    sweep.point([missing], state="planned", told={"ppo": {"planned": PLAN}})
    (cost,) = stage_costs(collect(sweep.place))
    assert (cost.planned.dollars, cost.spent) == (32.0, None)


def test_without_a_plan_hours_are_those_of_the_machine_it_ran_on(tmp_path):
    sweep = FakeSweep(tmp_path)
    stage = sweep.stage("sft", 0)
    hardware = environment()["hardware"] | {"price_per_gpu_hour": 36.0}
    write(stage / "environment.json", environment() | {"hardware": hardware})
    sweep.point([stage])
    (cost,) = stage_costs(collect(sweep.place))
    assert (cost.planned, cost.spent.gpu_hours) == (None, pytest.approx(2 * 12.5 / 3600))
    assert cost.spent.dollars == pytest.approx(0.25)
