"""The page of reward models' diagnoses: a reliability diagram, the scores of chosen and rejected answers, accuracy by
subset, and how often the worse answer of a probe is preferred."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.config.pages import make_environment
from rlhf.evaluation.reward.diagnosis import Diagnosis
from rlhf.evaluation.reward.labels import BENCH, WORSE, describe_diagnosis, find_label, sort_metrics
from rlhf.evaluation.reward.result import read_diagnoses
from rlhf.evaluation.statistics import Estimate
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.store import write_atomic
from rlhf.report.drawing import FAINT, INK, Drawing, write_svg
from rlhf.report.final_metrics import format_short
from rlhf.report.looks import PALETTE

CHOSEN, REJECTED = PALETTE[0], PALETTE[1]
# Inches of a row of a drawing of estimates.
ROW = 0.24


def write_reward_page(diagnoses: Mapping[str, Diagnosis]) -> str:
    """Return the diagnoses of reward models, by their names, as one HTML document that needs nothing else."""
    environment = make_environment(Path(__file__).parent)
    environment.filters |= {"short": format_short}
    models = [describe_model(f"model{n}", name, found) for n, (name, found) in enumerate(diagnoses.items(), start=1)]
    return environment.get_template("reward_model.html").render(models=models)


def write_stage_page(directory: StageDirectory) -> None:
    """Write the page of what a stage has diagnosed into its directory."""
    if (kept := read_diagnoses(directory.path)) is not None:
        write_atomic(directory.page, write_reward_page(kept.diagnoses))


def describe_model(key: str, name: str, diagnosis: Diagnosis) -> dict[str, Any]:
    """Return what the template shows of a model; `key` begins the ids of its drawings."""
    drawings = [(drawing.label, Markup(write_svg(drawing))) for drawing in make_drawings(key, diagnosis)]
    return {
        "key": key,
        "name": name,
        "lines": list(describe_diagnosis(diagnosis)),
        "metrics": [(find_label(metric), estimate) for metric, estimate in sort_metrics(diagnosis.metrics)],
        "drawings": drawings,
    }


def make_drawings(key: str, diagnosis: Diagnosis) -> list[Drawing]:
    """Return the drawings of a diagnosis that have something to show."""
    found = []
    if diagnosis.histogram is not None:
        label = "reliability diagram, and scores of chosen and rejected answers"
        found.append(Drawing(f"{key}-scores", label, (9.6, 3.4), partial(paint_scores, diagnosis)))
    accuracy = pick(diagnosis, "accuracy")
    probes = {name: estimate for name, estimate in diagnosis.metrics.items() if find_label(name).section == WORSE}
    bench = {name: estimate for name, estimate in diagnosis.metrics.items() if find_label(name).section == BENCH}
    for name, title, rows in (
        ("accuracy", "Accuracy: share of pairs ordered as the labels do", accuracy),
        ("probes", "Probes: share of prompts whose worse answer is preferred", probes),
        ("rewardbench", "RewardBench", bench),
    ):
        if len(rows) > 1:
            size = 9.6, 0.8 + ROW * len(rows)
            found.append(Drawing(f"{key}-{name}", title, size, partial(paint_estimates, title, rows)))
    return found


def pick(diagnosis: Diagnosis, metric: str) -> dict[str, Estimate]:
    """Return the estimates of a metric and of its groups."""
    return {name: found for name, found in diagnosis.metrics.items() if name == metric or name.startswith(f"{metric}/")}


def paint_scores(diagnosis: Diagnosis, figure: Figure) -> None:
    """Paint the reliability diagram, with the number of pairs in each bin, beside the histograms of scores."""
    left, right = figure.subplots(1, 2)
    paint_reliability(diagnosis, left)
    histogram = diagnosis.histogram
    if histogram is not None:
        for counts, colour, name in ((histogram.chosen, CHOSEN, "chosen"), (histogram.rejected, REJECTED, "rejected")):
            right.stairs(counts, histogram.edges, fill=True, color=colour, alpha=0.45, label=name)
        right.set(title="Scores", xlabel="score", ylabel="pairs")
        right.legend(frameon=False, labelcolor=INK)


def paint_reliability(diagnosis: Diagnosis, axis: Axes) -> None:
    """Paint how often the model is right against how sure it is."""
    axis.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 2)), label="calibrated")
    bins = diagnosis.reliability
    sizes = np.sqrt([found.n for found in bins])
    axis.plot([found.confidence for found in bins], [found.accuracy for found in bins], color=CHOSEN, linewidth=1.4)
    axis.scatter(
        [found.confidence for found in bins], [found.accuracy for found in bins], s=120 * (sizes / sizes.max()) ** 2 + 8,
        color=CHOSEN, zorder=3, label="pairs (area: how many)",
    )  # fmt: skip
    ece = diagnosis.metrics.get("ece")
    title = "Reliability" if ece is None else f"Reliability (calibration error {ece.mean:.3f})"
    axis.set(title=title, xlabel="confidence: sigmoid of the margin's size", ylabel="accuracy", xlim=(0.48, 1.02))
    axis.legend(frameon=False, labelcolor=INK, loc="upper left", markerscale=0.6)


def paint_estimates(title: str, rows: Mapping[str, Estimate], figure: Figure) -> None:
    """Paint shares with their intervals, one a row; the line is chance: a half, or, of the best of four, a quarter."""
    axis = figure.subplots()
    for place, estimate in enumerate(rows.values()):
        if estimate.low is not None and estimate.high is not None:
            axis.plot([estimate.low, estimate.high], [place, place], color=CHOSEN, linewidth=1.6, alpha=0.8)
        axis.plot([estimate.mean], [place], color=CHOSEN, marker="o", markersize=5.5, linestyle="")
    labels = [f"{find_label(name).text}  (n={estimate.n:,})" for name, estimate in rows.items()]
    chance = 0.25 if any(name.startswith("rewardbench2") for name in rows) else 0.5
    axis.axvline(chance, color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
    axis.set(title=title, yticks=range(len(rows)), yticklabels=labels, xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    axis.grid(axis="y", visible=False)
