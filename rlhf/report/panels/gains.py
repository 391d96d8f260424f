"""What training gained: final reward against final KL, and reward over training against KL and against what it cost."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.catalog.stage import known_metrics
from rlhf.report.drawing import INK, PAPER, Drawing
from rlhf.report.groups import Group
from rlhf.report.looks import SHARED, Look
from rlhf.report.panels.curves import Curve, draw_curves, is_logged, list_parts
from rlhf.report.panels.multiples import add_multiples, measure_multiples
from rlhf.report.panels.panel import Panel, View
from rlhf.report.series import COSTS, trace
from rlhf.report.statistics import Array, estimate

EVALUATION = "evaluate"
# What a policy gained, over the KL that it cost.
GAINED, KL = ("eval/reward", "eval/gold"), "eval/kl_sequence"
# The costs that reward is drawn against, where they are known; of seconds and dollars the last that is.
AGAINST = (KL, "tokens", "flops", "seconds", "dollars")
FRONTIER_NOTE = (
    "At the end of training, on held-out prompts: a small mark per seed (n of them are done), a large one for the group's "
    "mean, of a single seed with a bar of one standard error over prompts; the ring is the model that training began with. "
    "Where the score rises with KL and the gold reward does not, the policy exploits the reward model."
)
GAINS_NOTE = (
    "Held-out reward at each evaluation, means over seeds with their range, against KL to the reference and against what "
    "the stage's steps took up to then: real tokens, operations on them, and time or dollars on all its devices. Stages "
    "before it, start-up and evaluations are not in these costs. Another pair: report DIR --plot METRIC:COST."
)


def make_frontier(view: View) -> Panel:
    """Make the panel of final score and gold reward against final KL."""
    groups, known = view.groups, known_metrics()
    metrics = [known[name] for name in GAINED if any(len(score_pairs(group, name)) for group in groups)]
    shown = [len(score_pairs(group, "eval/reward")) for group in groups]
    names = [(metric.name, metric.title) for metric in metrics]
    label = "final reward against final KL to the reference"
    drawings = [Drawing("frontier", label, (9.6, 3.9), partial(paint, view, names))] if names else []
    if view.design.plots:
        size = measure_multiples(view.design)
        drawings = [
            Drawing(
                f"frontier-{name.replace('/', '-')}", f"{title}: {label}", size, partial(paint_multiples, view, name, title)
            )
            for name, title in names
        ]
    joined = f" Grey lines join groups that differ in {view.design.order} alone, in its order." if view.design.lines else ""
    return Panel("frontier", "Reward and KL", drawings, [], shown, FRONTIER_NOTE + joined, "No PPO stage is done yet.")


def paint(view: View, names: list[tuple[str, str]], figure: Figure) -> None:
    """Paint each metric against KL."""
    known = known_metrics()
    for axis, (name, title) in zip(figure.subplots(1, 2, squeeze=False)[0], names, strict=False):
        draw_frontier(axis, view, name)
        axis.set(title=title, xlabel=known[KL].with_unit(known[KL].label), ylabel="mean over held-out prompts")
        axis.margins(0.08)
    if len(names) == 1:
        figure.axes[1].set_visible(False)


def paint_multiples(view: View, name: str, title: str, figure: Figure) -> None:
    """Paint a metric against KL as small multiples."""
    kl = known_metrics()[KL]
    for axis, numbers in add_multiples(view.design, figure, title, kl.with_unit(kl.label), "mean over held-out prompts"):
        draw_frontier(axis, view, name, numbers)
        axis.margins(0.08)


def policy_kinds(group: Group) -> list[str]:
    """Return the kinds of a group's stages that measure policies: an evaluation only where nothing was trained, since it
    measures the same policy again."""
    trained = [kind for kind in group.kinds if kind != EVALUATION]
    return trained if any(KL in stage.metrics for kind in trained for stage in group.stages(kind)) else group.kinds


def score_pairs(group: Group, metric: str) -> Array:
    """Return KL and the metric of each finished stage that trained a policy, [stages, 2]."""
    stages = [stage for kind in policy_kinds(group) for stage in group.stages(kind)]
    known = [stage.metrics for stage in stages if metric in stage.metrics and KL in stage.metrics]
    return np.array([[metrics[KL], metrics[metric]] for metrics in known]).reshape(len(known), 2)


def draw_frontier(axis: Axes, view: View, metric: str, numbers: Iterable[int] | None = None) -> None:
    """Draw the starting point without KL, every seed, and the means, of all groups or of some; lines join groups along one
    numeric key."""
    means: dict[int, Array] = {}
    for number in range(len(view.groups)) if numbers is None else numbers:
        group, look = view.groups[number], view.design.looks[number]
        dots = score_pairs(group, metric)
        if len(dots):
            means[number] = dots.mean(axis=0)
            draw_marks(axis, dots, look, [e for kind in policy_kinds(group) for e in group.values(kind, f"{metric}_se")])
    for line in view.design.lines:
        joined = np.array([means[number] for number in line if number in means]).reshape(-1, 2)
        axis.plot(*joined.T, color="#bbbbbb", linewidth=1.0, zorder=2)
    starts = [v for group in view.groups for kind in group.kinds for v in group.values(kind, f"{metric}_sft")]
    if (start := estimate(starts)) is not None:
        axis.scatter(0.0, start.mean, s=60, facecolors=PAPER, edgecolors=SHARED, linewidths=1.4, zorder=4)
        axis.annotate("SFT", (0.0, start.mean), xytext=(8, 0), textcoords="offset points", va="center", color=INK)


def draw_marks(axis: Axes, dots: Array, look: Look, errors: list[float]) -> None:
    """Draw a group's seeds and their mean; `errors` are standard errors over prompts, which a single seed shows."""
    # Lines of markers alone: `scatter` takes five times as long.
    axis.plot(*dots.T, **look.mark, markersize=4.7, alpha=0.55, markeredgewidth=0, zorder=3)
    large: Any = {"markersize": 9.7, "markeredgecolor": PAPER, "markeredgewidth": 1.2, "zorder": 4}
    mean = dots.mean(axis=0)
    axis.plot(*mean[:, None], **look.mark, **large)
    if len(dots) == 1 and len(errors) == 1:
        axis.plot([mean[0]] * 2, [mean[1] - errors[0], mean[1] + errors[0]], color=look.colour, linewidth=1.2, zorder=3)


def make_gains(view: View) -> Panel | None:
    """Make the panel of reward over training against KL and costs; None where no policy was evaluated while it trained."""
    kinds = [kind for stages in list_parts(view.groups)[:1] for kind in stages]
    drawings = []
    for kind in kinds:
        panels = build_gains(view, kind)
        if panels:
            drawings += draw_curves(view, f"gains-{kind}", panels, 1 + len({p.against for p in panels} - {KL}))
    shown = [max(len(group.stages(kind)) for kind in kinds) for group in view.groups] if kinds else None
    return Panel("gains", "Reward against cost", drawings, [], shown, GAINS_NOTE) if drawings else None


def build_gains(view: View, kind: str) -> list[Curve]:
    """Return the plots of a kind of stage: each reward against KL, tokens, operations, and dollars or else seconds."""
    known, groups = known_metrics(), view.groups
    stages = [stage for group in groups for stage in group.stages(kind)]
    metrics = [name for name in GAINED if is_logged(groups, kind, name) and is_logged(groups, kind, KL)]
    if not metrics:
        return []
    costs = [
        name for name in AGAINST if name == KL or any(len(trace([stage], metrics[0], name)[0]) > 1 for stage in stages)
    ]
    chosen = [name for name in costs if name != "seconds" or "dollars" not in costs]
    words = COSTS | {KL: known[KL].with_unit(known[KL].heading)}
    return [Curve(kind, name, known[name].title, known[name].unit, words[x], x) for name in metrics for x in chosen]
