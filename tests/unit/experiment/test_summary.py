"""What is printed after a run, as a user reads it."""

import io

from rich.console import Console

from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.summary import print_summary, print_sweep
from rlhf.experiment.sweep import Outcome, Point

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
