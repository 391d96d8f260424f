import csv
import json

import pytest
from support.fake_sweep import GOLD, FakeSweep, config, grid

from rlhf.cli.report import main
from rlhf.report.collect import collect
from rlhf.report.final_metrics import collect_metrics, compared_metrics
from rlhf.report.groups import group_points
from rlhf.report.throughput import speeds


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    sweep = grid(tmp_path_factory.mktemp("outputs"))
    assert main([str(sweep.place)]) == 0
    return sweep.place / "report"


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_per_point_with_its_figures_in_full(report):
    found = rows(report / "points.csv")
    assert [row["point"] for row in found] == [f"ppo.kl_coef={kl},seed={seed}" for kl, seed in GOLD]
    assert [float(row["ppo eval/gold"]) for row in found] == list(GOLD.values())
    assert [row["state"] for row in found] == ["done"] * 4
    assert [row["ppo.kl_coef"] for row in found] == ["0.05", "0.05", "0.3", "0.3"]
    assert found[1]["seed"] == "1"
    assert float(found[1]["sft eval/perplexity"]) == 2.5
    assert {row["sft eval/loss"] for row in found} == {"0.4"}
    assert {row["reward eval/loss"] for row in found} == {"0.6"}
    assert json.loads((report / "points.json").read_text())[2]["ppo eval/gold"] == 3.0


def test_a_row_per_group_and_figure_with_mean_interval_and_n(report):
    found = {(row["group"], row["stage"], row["metric"]): row for row in json.loads((report / "table.json").read_text())}
    low = found["ppo.kl_coef=0.05", "ppo", "eval/gold"]
    assert (low["n"], low["mean"], low["best"]) == (2, 1.5, False)
    assert (low["low"], low["high"]) == pytest.approx((1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2), rel=1e-4)
    high = found["ppo.kl_coef=0.3", "ppo", "eval/gold"]
    assert (high["n"], high["mean"], high["gain"], high["unit"]) == (2, 3.25, 2.75, "gold")
    assert high["p_others"] == pytest.approx(0.13, abs=0.01)
    assert high["p_gain"] == pytest.approx(0.0577, abs=1e-3)
    same = found["ppo.kl_coef=0.05", "reward", "eval/accuracy"]
    assert (same["mean"], same["low"], same["high"]) == (0.7, 0.7, 0.7)
    text = [row for row in rows(report / "table.csv") if row["metric"] == "eval/gold"]
    assert [(row["n"], row["mean"], row["best"]) for row in text] == [("2", "1.5", "false"), ("2", "3.25", "false")]


def best_groups(tmp_path, gold, start=0.5, errors=0.0):
    """The groups whose gold reward is marked, of a sweep with these gold rewards by KL coefficient and seed."""
    sweep = FakeSweep(tmp_path)
    for kl, values in gold.items():
        for seed, value in enumerate(values):
            metrics = {"eval/gold": value, "eval/gold_sft": start, "eval/gold_se": errors, "eval/gold_sft_se": errors}
            sweep.point([sweep.stage("ppo", int(100 * kl) + 1000 * seed, metrics)], settings=config(kl, seed))
    groups = group_points(collect(sweep.place))
    (final,) = (final for final in collect_metrics(groups) if final.name == "eval/gold")
    cells = compared_metrics(groups, final)
    return [group.label for group, cell in zip(groups, cells, strict=True) if cell.best], cells


def test_only_a_distinguishable_mean_is_the_best(tmp_path):
    apart = {0.1: (1.0, 1.1, 0.9), 0.2: (3.0, 3.1, 3.2), 0.3: (1.5, 1.4, 1.6)}
    assert best_groups(tmp_path / "apart", apart)[0] == ["ppo.kl_coef=0.2"]
    assert best_groups(tmp_path / "close", apart | {0.3: (2.9, 3.1, 3.0)})[0] == []
    assert best_groups(tmp_path / "single", apart | {0.3: (1.5,)})[0] == []  # one seed, which nothing can be tested against
    assert best_groups(tmp_path / "start", apart, start=3.1)[0] == []  # not better than what training started from


def test_one_seed_is_compared_with_its_start_over_prompts_and_the_test_is_named(tmp_path):
    _, cells = best_groups(tmp_path, {0.1: (1.0,), 0.2: (0.6,)}, errors=0.1)
    assert [cell.error for cell in cells] == [0.1, 0.1]
    assert [(cell.gain.test, cell.gain.is_better(1), cell.best) for cell in cells] == [
        ("prompts of one run", True, False), ("prompts of one run", False, False),
    ]  # fmt: skip


def test_markdown_is_for_reading(report):
    lines = (report / "table.md").read_text().splitlines()
    assert lines[0].startswith("| group | points | perplexity |")
    assert "| 1.50 [-4.85, 7.85], n=2 |" in lines[2]
    assert "| 3.25 [0.0734, 6.43], n=2 |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_the_terminal_shows_where_and_what(tmp_path, capsys):
    sweep = grid(tmp_path)
    assert main([str(sweep.place), "--output", str(tmp_path / "elsewhere")]) == 0
    shown = capsys.readouterr().out
    assert "4 points: 4 done" in shown
    assert "8 stages: 2 sft, 2 reward, 4 ppo" in shown
    assert "8 stages instead of 12" in shown
    assert str(tmp_path / "elsewhere" / "report.html") in shown
    assert "3.25 (2)" in shown
    assert not (sweep.place / "report").exists()
    files = {file.name for file in (tmp_path / "elsewhere").iterdir()}
    assert files == {
        "report.html",
        *(f"{name}.{kind}" for name in ("points", "stages", "table") for kind in ("csv", "md", "json")),
    }


def test_the_same_input_gives_the_same_tables_and_plots(tmp_path):
    sweep = grid(tmp_path)
    for name in ("one", "two"):
        assert main([str(sweep.place), "--output", str(tmp_path / name)]) == 0
    for file in (tmp_path / "one").iterdir():
        one, two = file.read_text(), (tmp_path / "two" / file.name).read_text()
        if file.name == "report.html":
            one, two = ("".join(text.split("<svg")[1:]) for text in (one, two))
        assert one == two, file.name


def test_a_shared_result_counts_once(tmp_path):
    """A result that two points of a group use is one seed, not two."""
    sweep = FakeSweep(tmp_path)
    ppo = sweep.stage("ppo", 1, {"eval/gold": 1.0})
    sweep.point([ppo], name="a", settings=config(launcher={"kind": "inline"}))
    sweep.point([ppo], name="b", settings=config(launcher={"kind": "local"}))
    (group,) = group_points(collect(sweep.place))
    assert len(group.points) == 2
    assert group.values("ppo", "eval/gold") == [1.0]


def test_groups_are_in_the_order_of_their_numbers_and_named_by_what_was_typed(tmp_path):
    sweep = FakeSweep(tmp_path)
    for number, kl in enumerate((1, 0.05, 10, 0.3)):
        sweep.point([sweep.stage("ppo", number)], settings=config(kl, seed=number))
    assert [group.label for group in group_points(collect(sweep.place))] == [
        f"ppo.kl_coef={kl}" for kl in (0.05, 0.3, 1, 10)
    ]


def test_groups_of_which_nothing_was_typed_are_named_by_their_keys(tmp_path):
    sweep = FakeSweep(tmp_path)
    for number, kl in enumerate((0.1, 0.2)):
        place = sweep.point([sweep.stage("ppo", number)], settings=config(kl), name=str(number))
        summary = json.loads((place / "summary.json").read_text())
        (place / "summary.json").write_text(json.dumps(summary | {"overrides": []}))
    assert [group.label for group in group_points(collect(sweep.place))] == ["ppo.kl_coef=0.1", "ppo.kl_coef=0.2"]


def test_one_group_needs_no_name_of_its_own(tmp_path):
    sweep = FakeSweep(tmp_path)
    for seed in (0, 1, 2):
        sweep.point([sweep.stage("ppo", seed)], settings=config(seed=seed))
    assert [(group.label, len(group.points)) for group in group_points(collect(sweep.place))] == [("all points", 3)]
    (one,) = group_points(collect(sweep.place / "ppo.kl_coef=0.05,seed=1"))
    assert one.label == "ppo.kl_coef=0.05,seed=1"


def test_rates_are_totals_over_totals(tmp_path):
    """Steps of 2 s at 4 samples/s and of 1 s at 8 samples/s: 8 samples a step, 32 in 6 s."""
    _, each = speeds(collect(grid(tmp_path).place))
    assert [speed.label[:3] for speed in each] == ["ppo"] * 4
    assert each[0].metrics["throughput/samples_per_s"] == pytest.approx(32 / 6)
    assert each[0].metrics["time/step_s"] == 1.5
    assert each[0].metrics["throughput/mfu"] == 0.25
    assert each[0].metrics["memory/peak_gib"] == 5.0
    assert each[0].device == "2 × a100"


def test_export_writes_each_drawing_and_table_for_a_paper(tmp_path):
    sweep = grid(tmp_path)
    assert main([str(sweep.place), "--export", str(tmp_path / "paper")]) == 0
    files = {file.name: file.read_bytes() for file in (tmp_path / "paper").iterdir()}
    assert {f"{name}.{kind}" for name in ("curves-ppo", "frontier", "lineage") for kind in ("svg", "pdf")} <= set(files)
    assert all(content.startswith(b"%PDF") for name, content in files.items() if name.endswith(".pdf"))
    assert b"ppo.kl_coef=0.3" in files["frontier.svg"]  # the legend
    lines = files["table.tex"].decode().splitlines()
    assert lines[:2] == [r"\begin{tabular}{lrllllll}", r"\toprule"]
    assert lines[5].startswith(r"ppo.kl\_coef=0.3 & 2 & ") and lines[5].endswith(r"\\")
    assert files["points.csv"] == (sweep.place / "report" / "points.csv").read_bytes()


def test_a_plot_of_what_no_stage_has_logged_is_refused(tmp_path, capsys):
    sweep = grid(tmp_path)
    assert main([str(sweep.place), "--plot", "eval/gold:tokens", "--plot", "reward/mean:kl/sequence"]) == 0
    assert "asked" in (sweep.place / "report" / "report.html").read_text()
    capsys.readouterr()
    assert main([str(sweep.place), "--plot", "eval/goold"]) == 2
    assert "no stage here has logged the metric eval/goold" in capsys.readouterr().err


def test_a_live_page_ends_with_the_last_stage(tmp_path, monkeypatch):
    sweep = FakeSweep(tmp_path)
    running = sweep.stage("ppo", 1, state="running")
    sweep.point([running])
    file, seen = sweep.place / "report" / "report.html", []

    def finish(seconds):
        seen.append(('http-equiv="refresh" content="7"' in file.read_text(), seconds))
        sweep.stage("ppo", 1, {"eval/gold": 1.0})

    monkeypatch.setattr("time.sleep", finish)
    assert main([str(sweep.place), "--live", "7"]) == 0
    assert seen == [(True, 7)]
    assert "http-equiv" not in file.read_text()
