"""What diagnoses of reward models found: accuracy, calibration, scores of chosen and rejected answers, and probes."""

from rlhf.config.terminal import plural
from rlhf.evaluation.statistics import Estimate
from rlhf.report.diagnoses import Diagnosed, find_diagnoses
from rlhf.report.drawing import Drawing, add_title
from rlhf.report.panels.panel import Panel, PanelTable, View

# Models that are drawn.
MOST = 4
# The metrics of the table, by their headings.
COLUMNS = {
    "accuracy": "accuracy", "accuracy/chosen=longer": "chosen longer", "accuracy/chosen=shorter": "chosen shorter",
    "accuracy_gold": "against gold", "ties": "ties", "ece": "calibration error", "brier": "Brier",
    "correlation/length": "follows length",
}  # fmt: skip
NOTE = (
    "Of held-out pairs, or of the data that the diagnosis was asked for, with 95% intervals over prompts. A calibration "
    "error is above 0 by chance alone. The directory's diagnoses.json has every metric, and "
    "`python -m rlhf evaluate-reward` prints those of a stage."
)


def make_panel(view: View) -> Panel | None:
    """Make the panel of reward models; None where none was diagnosed."""
    found = find_diagnoses(view.collection)
    if not found:
        return None
    drawings = [draw for one in found[:MOST] for draw in draw_model(one)]
    note = NOTE + (f" Drawn are {MOST} of {len(found)} models." if len(found) > MOST else "")
    return Panel("reward-models", "Reward models", drawings, [make_table(found)], note=note)


def draw_model(one: Diagnosed) -> list[Drawing]:
    """Return the drawings of a model, each with its name."""
    from rlhf.report.reward_model import make_drawings  # which most reports do without

    return [add_title(found, one.model) for found in make_drawings(one.model, one.diagnosis)]


def make_table(found: list[Diagnosed]) -> PanelTable:
    """Return a row per model: the main metrics, and where the rest lies."""
    columns = {name: heading for name, heading in COLUMNS.items() if any(name in one.diagnosis.metrics for one in found)}
    rows = []
    for one in found:
        row = {"model": one.model, "pairs": one.diagnosis.counts.get("pairs")}
        row |= {heading: write(one.diagnosis.metrics.get(name)) for name, heading in columns.items()}
        older = f" (the newest; {plural(one.others, 'older one')})" if one.others else ""
        rows.append(row | {"directory": f"{one.directory}{older}"})
    return PanelTable("reward-models", "Diagnoses", rows)


def write(found: Estimate | None) -> str:
    """Write an estimate with its interval; a dash where there is none."""
    if found is None:
        return "–"
    ends = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.mean:.3f}{ends}"
