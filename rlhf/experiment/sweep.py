"""The points of a sweep as one graph: each stage once, however many points share it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import order_stages
from rlhf.config.schema import Config
from rlhf.config.terminal import split_apart, tell_apart
from rlhf.experiment.checkpoints import find_layout
from rlhf.experiment.graph import Node
from rlhf.planner.auto import choose_layout, with_keys
from rlhf.planner.remaining import Planned


@dataclass(frozen=True)
class Point:
    """One checked configuration, the overrides that made it, the directory that Hydra gave it, whether it is one of a
    sweep's, and its stages."""

    config: Config
    overrides: list[str]
    directory: Path
    swept: bool
    stages: list[Node]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.directory.name

    @property
    def sweep(self) -> str | None:
        """The name of the sweep, or of the search, that it is a point of; None of a run by itself."""
        parent = self.directory.parent
        return parent.name if self.swept or parent.parent.name == "sweeps" else None


@dataclass(frozen=True)
class Task:
    """A stage of the graph, with the configuration of the first point that wants it and the names of all that do. `layout`
    are the keys that were `auto`, with the values that `lay_out` chose, and `reason` says why these. `planned` is what the
    stage is to take. `label` says of a sweep's stage whose it is: what sets its point apart, or how many points use it.
    `swept` are the overrides that all points that use it have and not all of the sweep, and `sweep` is the sweep's name."""

    node: Node
    config: Config
    points: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    planned: Planned | None = None
    label: str = ""
    swept: str = ""
    sweep: str = ""

    @property
    def key(self) -> str:
        """The stage's fingerprint."""
        return self.node.fingerprint

    @property
    def parents(self) -> tuple[str, ...]:
        """Fingerprints of the stages it needs."""
        return self.node.parents


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: `state` is one of rlhf/catalog/state.py, or `reused` if it was done before."""

    state: str
    reason: str | None = None
    log: Path | None = None

    @property
    def good(self) -> bool:
        """Whether stages that need it can go on."""
        return self.state in ("done", "reused")


def read_summary_metrics(node: Node) -> dict[str, float]:
    """Return the final figures of a stage that is done; none where its result was damaged since."""
    try:
        return node.directory.result().metrics
    except ValueError:
        return {}


def metrics_by_stage(point: Point, outcomes: dict[str, Outcome]) -> dict[str, dict[str, float]]:
    """Read the final metrics of a point's stages that are done; a stage without any is left out."""
    done = {n.stage: read_summary_metrics(n) for n in point.stages if outcomes[n.fingerprint].good and not n.changes}
    return {stage: metrics for stage, metrics in done.items() if metrics}


def final_metrics(point: Point, outcomes: dict[str, Outcome]) -> dict[str, float]:
    """Return the final metrics of a point's stages that are done, by name; of two stages with the same metric the later
    one's."""
    return {name: value for found in metrics_by_stage(point, outcomes).values() for name, value in found.items()}


def state_without_result(node: Node, outcome: Outcome) -> str | None:
    """Return the state of a stage that has no result; None if it has one."""
    try:
        if outcome.good:
            node.directory.result()
    except ValueError:
        return "damaged"
    return None if outcome.good else outcome.state


def build_task_graph(points: list[Point]) -> list[Task]:
    """Return the distinct stages of all points, those that others need first: all of a kind together, in the points'
    order."""
    tasks: dict[str, Task] = {}
    for stage in order_stages(node.stage for point in points for node in point.stages):
        for point in points:
            for node in point.stages:
                if node.stage == stage:
                    if node.fingerprint not in tasks:
                        tasks[node.fingerprint] = Task(node, with_keys(point.config, dict(node.changes)))
                    tasks[node.fingerprint].points.append(point.name)
    sweep = points[0].sweep or ""
    if len(points) == 1:
        return [replace(task, sweep=sweep) for task in tasks.values()]
    apart = tell_apart([point.name for point in points])
    parts = split_apart(list(apart))
    return [
        replace(task, label=label_users(task.points, apart), swept=find_swept(task.points, parts), sweep=sweep)
        for task in tasks.values()
    ]


def find_swept(names: list[str], parts: Mapping[str, list[str]]) -> str:
    """Return the overrides that some points share, of those that not all points have (`parts`, by point)."""
    return " ".join(part for part in parts[names[0]] if all(part in parts[name] for name in names))


def label_users(names: list[str], apart: Mapping[str, str]) -> str:
    """Return what sets the one point apart that uses a stage, or how many of all points use it."""
    return apart[names[0]] if len(names) == 1 else f"{len(names)} of {len(apart)}"


def lay_out(tasks: list[Task]) -> list[Task]:
    """Return the stages with what the planner chooses for them, or with what their checkpoints were saved with."""
    found = []
    for task in tasks:
        resumed = find_layout(task.node.directory.path) if task.config.checkpoint.resume else None
        chosen = choose_layout(task.config, task.node.stage, None if resumed is None else resumed[1])
        found.append(replace(task, config=chosen.config, layout=chosen.layout, reason=chosen.reason))
    return found


def blocked_by(task: Task, outcomes: dict[str, Outcome], by_key: dict[str, Task]) -> Outcome | None:
    """Return the outcome of a task that cannot run, which names the stage that it lacks: pruned with that stage, else
    skipped; None if it can run, or if a stage it needs has not ended."""
    for parent in task.parents:
        outcome = outcomes.get(parent)
        if outcome is not None and not outcome.good:
            state = "pruned" if outcome.state == "pruned" else "skipped"
            return Outcome(state, f"{by_key[parent].node.directory.path.name} {outcome.state}")
    return None
