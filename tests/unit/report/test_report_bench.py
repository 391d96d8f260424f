"""A sweep of benchmarks as a report shows it."""

import csv
import json

import pytest
from support.fake_sweep import FakeSweep, config, step

from rlhf.cli.report import main
from rlhf.report.collect import collect
from rlhf.report.groups import group_points
from rlhf.report.throughput import speeds

POINTS = (("hybrid", 0, 0, 30.0), ("hybrid", 0, 1, 32.0), ("hybrid", 3, 0, 20.0), ("hf", 0, 0, 10.0))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two engines and two ZeRO stages, one of them under two seeds."""
    made = FakeSweep(tmp_path_factory.mktemp("outputs"), "systems")
    for number, (engine, zero, seed, rate) in enumerate(POINTS):
        figures = {"throughput/samples_per_s": rate, "throughput/mfu": rate / 100, "memory/peak_gib": 40.0 - rate}
        lines = [step(round_, 0.0) | {"throughput/samples_per_s": rate} for round_ in (1, 2)]
        stage = made.stage("bench", number, figures, lines=lines)
        settings = config(seed=seed, stages=["bench"], rollout={"engine": engine}, zero={"stage": zero})
        place = made.point([stage], settings=settings, name=f"{engine},{zero},{seed}")
        summary = json.loads((place / "summary.json").read_text())
        summary["overrides"] = [f"rollout={engine}", f"zero='{zero}'", f"seed={seed}"]
        (place / "summary.json").write_text(json.dumps(summary))
    return made


def test_points_that_differ_in_engine_or_zero_are_groups_of_their_own(sweep):
    assert {group.label: len(group.points) for group in group_points(collect(sweep.place))} == {
        "rollout=hybrid, zero=0": 2, "rollout=hybrid, zero=3": 1, "rollout=hf, zero=0": 1,
    }  # fmt: skip


def test_the_tables_have_rate_memory_and_mfu_and_mark_no_single_seed(sweep, capsys):
    assert main([str(sweep.place)]) == 0
    shown = capsys.readouterr().out
    assert all(heading in shown for heading in ("seq/s", "MFU", "peak GiB", "31.0 (2)"))
    table = (sweep.place / "report" / "table.md").read_text().splitlines()
    assert table[0] == "| group | points | seq/s | MFU | peak GiB |"
    (first,) = (line for line in table if "rollout=hybrid, zero=0" in line)
    assert "31.0 [" in first and "0.310 [" in first and "9.00 [" in first
    assert not any("**" in line for line in table)  # the others are one seed each
    with (sweep.place / "report" / "points.csv").open(newline="") as stream:
        found = {row["point"]: row for row in csv.DictReader(stream)}
    assert float(found["hf,0,0"]["bench throughput/samples_per_s"]) == 10.0
    assert (found["hybrid,3,0"]["zero.stage"], found["hf,0,0"]["rollout.engine"]) == ("3", "hf")


def test_the_page_shows_the_rounds_and_averages_no_settings(sweep):
    by_kind, by_stage = speeds(collect(sweep.place))
    assert (by_kind, len(by_stage)) == ([], 4)
    main([str(sweep.place)])
    page = (sweep.place / "report" / "report.html").read_text()
    assert "Sequences per second" in page and "sequences per second" in page
    assert page.count("No stage has logged a step yet.") == 0
    assert all(f"<code>bench-{number:012x}</code>" in page for number in range(4))
