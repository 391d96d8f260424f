"""The panels of the page, in its order. A further one is a function of the collected stages, and an entry here."""

from rlhf.report.panels import curves, evaluation, gains, health, lengths, lineage, overoptimisation, reward_models
from rlhf.report.panels.panel import MakePanel, Panel, View

__all__ = ["PANELS", "Panel", "View", "make_panels"]

PANELS: tuple[MakePanel, ...] = (
    health.make_panel, curves.make_panel, gains.make_frontier, gains.make_gains, overoptimisation.make_panel,
    evaluation.make_panel, reward_models.make_panel, lengths.make_panel, lineage.make_panel,
)  # fmt: skip


def make_panels(view: View) -> list[Panel]:
    """Make the panels that have something to say."""
    return [panel for make in PANELS if (panel := make(view)) is not None]
