"""The points of a sweep as one graph: each stage once, however many points share it."""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf.catalog.stage import order_stages
from rlhf.config.schema import Config
from rlhf.experiment.graph import Node


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
        """What tells it from the others."""
        return self.directory.name


@dataclass(frozen=True)
class Task:
    """A stage of the graph, with the configuration of the first point that wants it and the names of all that do."""

    node: Node
    config: Config
    points: list[str] = field(default_factory=list)

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
    """The final figures of a stage that is done; none where its result was damaged since."""
    try:
        return node.directory.result().metrics
    except ValueError:
        return {}


def metrics_by_stage(point: Point, outcomes: dict[str, Outcome]) -> dict[str, dict[str, float]]:
    """Read the final metrics of a point's stages that are done; a stage without any is left out."""
    done = {node.stage: read_summary_metrics(node) for node in point.stages if outcomes[node.fingerprint].good}
    return {stage: metrics for stage, metrics in done.items() if metrics}


def final_metrics(point: Point, outcomes: dict[str, Outcome]) -> dict[str, float]:
    """The final metrics of a point's stages that are done, by name; of two stages with the same metric the later one's."""
    return {name: value for found in metrics_by_stage(point, outcomes).values() for name, value in found.items()}


def build_task_graph(points: list[Point]) -> list[Task]:
    """The distinct stages of all points, those that others need first: all of a kind together, in the points' order."""
    tasks: dict[str, Task] = {}
    for stage in order_stages(node.stage for point in points for node in point.stages):
        for point in points:
            for node in point.stages:
                if node.stage == stage:
                    task = tasks.setdefault(node.fingerprint, Task(node, point.config))
                    task.points.append(point.name)
    return list(tasks.values())


def blocked_by(task: Task, outcomes: dict[str, Outcome], by_key: dict[str, Task]) -> str | None:
    """Why a stage cannot run, its needs having ended; None if it can."""
    for parent in task.parents:
        outcome = outcomes.get(parent)
        if outcome is not None and not outcome.good:
            return f"{by_key[parent].node.directory.path.name} {outcome.state}"
    return None
