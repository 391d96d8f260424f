"""What a run or a point of a sweep leaves: its configuration, links to its stages, and summary.json."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.catalog.state import most_urgent
from rlhf.config.secrets import mask_values, to_yaml
from rlhf.experiment.graph import Node
from rlhf.experiment.plan import count_slots
from rlhf.experiment.store import write_atomic, write_json
from rlhf.experiment.sweep import Outcome, Point, read_summary_metrics
from rlhf.planner.plan import StagePlan
from rlhf.planner.remaining import summarize_plan


def write_record(point: Point, outcomes: dict[str, Outcome], plans: Mapping[str, StagePlan] | None = None) -> None:
    """Write a point's summary.json and config.yaml, and link its stages; stages without an outcome are planned. `plans` are
    the plans of stages, by fingerprint."""
    entries = {node.name: summary_entry(node, outcomes.get(node.fingerprint, Outcome("planned"))) for node in point.stages}
    for node in point.stages:
        if plans is not None and node.fingerprint in plans:
            entries[node.name]["planned"] = asdict(summarize_plan(plans[node.fingerprint]))
    state = most_urgent((stage["state"] for stage in entries.values()), default="done")
    members = {node.name for node in point.stages if node.changes}
    stages = {name: entry for name, entry in entries.items() if name not in members}
    point.directory.mkdir(parents=True, exist_ok=True)
    # The same command writes them again: a thousand points need not wait for the disk.
    write_atomic(point.directory / "config.yaml", to_yaml(asdict(point.config)), durable=False)
    names = {node.directory.path.name for node in point.stages}
    for path in (point.directory / "stages").glob("*"):
        if path.is_symlink() and path.name not in names:
            path.unlink()  # of what a point of this name was before
    for node in point.stages:
        link_stage(point.directory / "stages" / node.directory.path.name, node.directory.path)
    at_once = count_slots(point.config)
    summary = {"point": point.name, "overrides": point.overrides, "state": state, "at_once": at_once, "stages": stages}
    summary |= {"members": {name: entries[name] for name in sorted(members)}} if members else {}
    write_json(point.directory / "summary.json", mask_values(summary), durable=False)


def summary_entry(node: Node, outcome: Outcome) -> dict[str, Any]:
    """Return a stage of summary.json."""
    return {
        "directory": str(node.directory.path),
        "state": "done" if outcome.good else outcome.state,
        "reused": outcome.state == "reused",
        "reason": outcome.reason,
        "log": None if outcome.log is None else str(outcome.log),
        "metrics": read_summary_metrics(node) if outcome.good else {},
    }


def link_stage(link: Path, target: Path) -> None:
    """Link a stage relatively, so that the whole output directory can be moved."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))
