"""What is printed after a run, as a user reads it."""

import io

import pytest
from rich.console import Console

from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.summary import print_summary
from rlhf.experiment.sweep import Outcome, Point
from rlhf.experiment.sweep_table import print_sweep

SFT = {"eval/perplexity": 2.5, "eval/perplexity_se": 0.125, "eval/perplexity_initial": 900.0}


def printed(show, make_config, tmp_path, metrics):
    """What is shown of an SFT stage with these final figures."""
    config = make_config("stage=sft", f"output_root={tmp_path}")
    (node,) = build_graph(config)
    node.directory.finish(Result("sft", node.fingerprint, 1.0, metrics))
    console = Console(width=160, file=io.StringIO(), force_terminal=False)
    outcomes = {node.fingerprint: Outcome("done")}
    if show is print_summary:
        print_summary([node], outcomes, console)
    else:
        print_sweep([Point(config, [], tmp_path / "point", True, [node])], outcomes, console)
    return " ".join(console.file.getvalue().replace("│", " ").split())


def test_a_figure_stands_with_its_standard_error(make_config, tmp_path):
    text = printed(print_summary, make_config, tmp_path, SFT)
    assert "SFT perplexity 2.50 ± 0.12" in text and "perplexity before SFT 900" in text


def test_responses_that_were_cut_are_told(make_config, tmp_path):
    cut = SFT | {"data/responses": 3000.0, "data/responses_cut": 126.0}
    assert "responses cut short, sft 126 of 3000" in printed(print_summary, make_config, tmp_path / "run", cut)
    assert "responses cut short, sft: 126 of 3000" in printed(print_sweep, make_config, tmp_path / "sweep", cut)
    assert "cut short" not in printed(print_summary, make_config, tmp_path / "none", SFT | {"data/responses_cut": 0.0})


GOLD = {"eval/gold_sft": 0.89, "eval/gold": 1.37, "eval/reward": 3.43, "eval/kl_sequence": 7.59, "eval/length": 36.7}
METRICS = {
    "sft": SFT,
    "reward": {"eval/accuracy": 0.764},
    "ppo": GOLD,
    "evaluate": GOLD | {"eval/gold": 2.25, "eval/perplexity": 1.93},
    "evaluate_reward": {"eval/accuracy": 0.701, "eval/calibration_error": 0.075, "eval/correlation_length": 0.437},
}


def finish_sweep(make_config, tmp_path, stages=tuple(METRICS)):
    """Points of a sweep over the KL coefficient, all of whose stages are done."""
    typed = f"stages=[{','.join(stages)}]", f"output_root={tmp_path}"
    points = []
    for kl in ("0.05", "0.2"):
        config = make_config(*typed, f"ppo.kl_coef={kl}")
        points.append(Point(config, [], tmp_path / "kl" / f"ppo.kl_coef={kl}", True, build_graph(config)))
        for node in points[-1].stages:
            node.directory.finish(Result(node.stage, node.fingerprint, 1.0, METRICS[node.stage]))
    return points


def print_points(points, width, state="done"):
    """The result of a sweep as a terminal of this width shows it; `state` is that of the last stage."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    outcomes = {node.fingerprint: Outcome("done") for point in points for node in point.stages}
    outcomes |= {points[-1].stages[-1].fingerprint: Outcome(state)}
    print_sweep(points, outcomes, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_table_of_points_is_never_cut(width, make_config, tmp_path):
    text = print_points(finish_sweep(make_config, tmp_path), width, "failed")
    assert "…" not in text
    table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, table)) <= width
    assert ("left out at 60 columns" in text) == (width == 60)


def test_what_is_measured_twice_stands_once_as_the_evaluation_has_it(make_config, tmp_path):
    text = print_points(finish_sweep(make_config, tmp_path), 160)
    assert text.count("2.25") == 2 and "1.37" not in text
    assert "0.764" not in text and "accuracy, evaluated 0.701" in text
    assert "gold, policy" in print_points(finish_sweep(make_config, tmp_path, ("sft", "reward", "ppo")), 160)


def test_what_all_points_share_stands_below_their_table(make_config, tmp_path):
    lines = print_points(finish_sweep(make_config, tmp_path), 160).splitlines()
    assert any(line.startswith("the same in all 2 points: perplexity 2.50 (sft); ") for line in lines)


def test_columns_that_matter_most_are_left(make_config, tmp_path):
    text = print_points(finish_sweep(make_config, tmp_path), 50)
    shown, told = text.split("left out at 50 columns: ")
    assert "gold, SFT" in told and "2.25" in shown
