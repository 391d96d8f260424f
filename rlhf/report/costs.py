"""What stages were planned to take beside what they took: seconds, device-hours and US dollars."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.terminal import format_dollars, format_seconds
from rlhf.experiment.files import as_float, as_int, as_mapping
from rlhf.planner.plan import HOUR
from rlhf.report.collect import Collection
from rlhf.report.stage import Stage


@dataclass(frozen=True)
class Cost:
    """Seconds, device-hours and US dollars, of a stage or of several."""

    seconds: float
    gpu_hours: float
    dollars: float


@dataclass(frozen=True, eq=False)
class StageCost:
    """A stage with what was planned of it, and what it took so far; None where that is not known."""

    stage: Stage
    planned: Cost | None
    spent: Cost | None


def find_cost(stage: Stage) -> StageCost:
    """Return the planned and the spent cost of a stage."""
    plan, spent = stage.planned, stage.seconds
    devices, price = find_price(stage)
    return StageCost(
        stage,
        None if plan is None or plan.seconds is None else make_cost(plan.seconds, devices, price),
        None if spent is None else make_cost(spent, devices, price),
    )


def find_price(stage: Stage) -> tuple[int, float]:
    """Return the devices of a stage and the price of a device and hour: the plan's, or else those that environment.json
    tells."""
    if stage.planned is not None:
        return stage.planned.devices, stage.planned.price
    hardware = as_mapping(stage.environment.get("hardware"))
    counts = [as_int(hardware.get(name)) for name in ("nodes", "gpus_per_node")]
    return math.prod(1 if count is None else count for count in counts), as_float(hardware.get("price_per_gpu_hour")) or 0.0


def make_cost(seconds: float, devices: int, price: float) -> Cost:
    """Return the cost of so many seconds on so many devices, at US dollars for a device and hour."""
    hours = seconds / HOUR * devices
    return Cost(seconds, hours, hours * price)


def add_up(costs: Sequence[Cost | None]) -> Cost | None:
    """Sum the costs that are known; None if none is."""
    known = [cost for cost in costs if cost is not None]
    if not known:
        return None
    return Cost(*(sum(getattr(cost, name) for cost in known) for name in ("seconds", "gpu_hours", "dollars")))


def stage_costs(collection: Collection) -> list[StageCost]:
    """Return the cost of each stage once, however many points use it."""
    return [find_cost(stage) for stage in collection.stages]


def cost_lines(collection: Collection) -> list[str]:
    """Return what the stages took beside what was planned of them, and what sharing them saved, each as a line."""
    costs = stage_costs(collection)
    finished = [
        cost for cost in costs if cost.stage.state == "done" and cost.spent is not None and cost.planned is not None
    ]
    spent, planned = add_up([cost.spent for cost in costs]), add_up([cost.planned for cost in finished])
    lines = []
    if planned is not None and len(finished) == len(costs):
        lines.append(f"{describe_cost(spent)} spent; {describe_cost(planned)} planned")
    elif spent is not None:
        lines.append(f"{describe_cost(spent)} spent so far")
        if planned is not None:
            done = add_up([cost.spent for cost in finished])
            lines.append(f"of it {describe_cost(done)} by finished stages; {describe_cost(planned)} planned for them")
    saved = add_up([multiply(cost.spent, len(collection.users(cost.stage)) - 1) for cost in costs])
    if saved is not None and saved.seconds > 0:
        lines.append(f"sharing stages saved {describe_cost(saved)}")
    return lines


def multiply(cost: Cost | None, number: int) -> Cost | None:
    """Return a cost so many times."""
    return None if cost is None else Cost(cost.seconds * number, cost.gpu_hours * number, cost.dollars * number)


def describe_cost(cost: Cost | None) -> str:
    """Return a cost in words; device-hours where they differ from the time that it took, dollars where it has a price."""
    if cost is None:
        return "nothing"
    hours = f", {cost.gpu_hours:,.3g} GPU-hours" if cost.gpu_hours > 1.01 * cost.seconds / HOUR else ""
    return f"{format_seconds(cost.seconds)}{hours}" + (f", {format_dollars(cost.dollars)}" if cost.dollars else "")


def cost_rows(collection: Collection) -> list[dict[str, Any]]:
    """Return a row per stage for the tables beside the page."""
    return [
        {
            "stage": cost.stage.name,
            "kind": cost.stage.kind,
            "state": cost.stage.state,
            "steps": cost.stage.step,
            "points": len(collection.users(cost.stage)),
            **cost_cells("planned", cost.planned),
            **cost_cells("spent", cost.spent),
        }
        for cost in stage_costs(collection)
    ]


def cost_cells(what: str, cost: Cost | None) -> dict[str, float | None]:
    """Return the cells of a cost by their columns."""
    return {f"{what}_{name}": None if cost is None else getattr(cost, name) for name in ("seconds", "gpu_hours", "dollars")}
