"""The alarms that the metrics of the stages raise."""

from rlhf.catalog.health import RULES
from rlhf.report.panels.panel import Panel, PanelTable, View

NOTE = (
    "An alarm is a reason to look at the curves, not a verdict; it sounds again if it ended and began anew. "
    "health.stop=[NAME] stops a stage at one. Rules that were looked at: "
)


def make_panel(view: View) -> Panel | None:
    """Make the panel of alarms, a row for each time that one began; None where no stage has logged what a rule reads."""
    stages = [stage for stage in view.collection.stages if any(rule.needs[0] in stage.series.values for rule in RULES)]
    if not stages:
        return None
    rows = [
        {
            "stage": stage.name,
            "points": ", ".join(point.name for point in view.collection.users(stage)),
            "alarm": alarm.name,
            "began at step": alarm.step,
            "still sounds": "yes" if alarm.lasts else "no",
            "because": alarm.text,
        }
        for stage in stages
        for alarm in stage.alarms
    ]
    looked = dict.fromkeys(rule.name for rule in RULES for stage in stages if rule.needs[0] in stage.series.values)
    count = f"{len({row['stage'] for row in rows})} of {len(stages)} stages"
    heading = f"{len(rows)} alarms on {count}" if rows else f"no alarm on {len(stages)} stages"
    return Panel("alarms", "Alarms", [], [PanelTable("alarms", heading, rows)], note=NOTE + ", ".join(looked) + ".")
