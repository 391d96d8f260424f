"""How long the records are that stages train on."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from rlhf.report.drawing import Drawing
from rlhf.report.looks import PALETTE
from rlhf.report.panels.panel import Panel, View
from rlhf.report.stage import Lengths

# At most so many plots show lengths.
MOST = 4
NOTE = (
    "How many training records of a stage have a prompt, and a response, of so many tokens; what does not fit is cut or "
    "left out before. data.json in a stage's directory has the counts."
)


def make_panel(view: View) -> Panel | None:
    """Make the panel of lengths, with a plot for each kind of stage and each data; None without lengths."""
    stages = [stage for stage in view.collection.stages if stage.lengths is not None]
    found = list(dict.fromkeys((stage.kind, stage.lengths) for stage in stages if stage.lengths is not None))[:MOST]
    if not found:
        return None
    label = "lengths of training prompts and responses, in tokens"
    return Panel(
        "lengths",
        "Lengths of the data",
        [Drawing("lengths", label, (3.6 * len(found), 2.6), partial(paint, found))],
        note=NOTE,
    )


def paint(found: list[tuple[str, Lengths]], figure: Figure) -> None:
    """Paint a histogram for each kind of stage."""
    for axis, (kind, lengths) in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        for name, counts, colour in (("prompts", lengths.prompt, PALETTE[0]), ("responses", lengths.response, PALETTE[1])):
            if any(counts):
                edges = np.arange(len(counts) + 1) * lengths.width
                axis.stairs(counts, edges, fill=True, color=colour, alpha=0.45, label=name)
        axis.set(title=kind, xlabel="tokens", ylabel="records")
        axis.legend(frameon=False)
