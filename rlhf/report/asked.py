"""Evaluations of a collection's policies by what they ask: those of its points, and those that `python -m rlhf evaluate`
or another sweep has left in the same output directory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.directories import RESULT_FILE
from rlhf.config.keys import has_no_effect_but, matches_prefix
from rlhf.config.metadata import AUTO
from rlhf.experiment.files import Unreadable, as_mapping, flatten, read_object
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.report.collect import Collection, Point
from rlhf.report.groups import Group, to_yaml_text
from rlhf.report.stage import Stage, SummaryEntry, read_stage

KIND = "evaluate"
# Keys that say whose evaluation it is, not what it asks.
WHOSE = ("evaluate.policy", "evaluate.reference")
# Keys that are told of what evaluations ask otherwise than points do.
TOLD = 4


@dataclass(frozen=True, eq=False)
class Asked:
    """Evaluations that ask the same of several policies.

    Attributes:
        told: In what they differ from the evaluations that the points' own configurations describe; empty of those.
        groups: The groups of a report, whose points have these evaluations alone.
        others: Further policies that were asked, as that which training started from.
    """

    told: str
    groups: list[Group]
    others: list[Group]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An evaluation that is done: the name of the directory of the stage that made its policy, what it asks by dotted keys,
    and the directories of the rewards that judge."""

    path: Path
    policy: str
    asks: Mapping[str, Any]
    judges: tuple[str, ...]

    @property
    def key(self) -> str:
        """What it asks, as text: evaluations of one key can be compared."""
        return json.dumps([self.asks, self.judges], sort_keys=True, default=str)


def list_asked(collection: Collection, groups: Sequence[Group]) -> list[Asked]:
    """Return the evaluations of a collection's policies by what they ask: those of its points with others that ask the same
    first, if only as no evaluations, then those that ask something else."""
    own = {stage.path for stage in collection.stages if stage.kind == KIND and stage.state == "done"}
    made = {stage.name for stage in collection.stages}
    found = [one for one in read_evaluations(collection) if one.policy in made]
    composed = {one.key for one in found if one.path in own}
    sets: dict[str, list[Evaluation]] = {}
    for one in (one for one in found if one.path not in own):
        sets.setdefault("" if one.key in composed else one.key, []).append(one)
    newest = {key: list({one.policy: one for one in evaluations}.values()) for key, evaluations in sets.items()}
    same = [make_asked(collection, groups, newest.pop("", []), is_composed=True)]
    return same + [make_asked(collection, groups, evaluations, is_composed=False) for evaluations in newest.values()]


def read_evaluations(collection: Collection) -> Iterator[Evaluation]:
    """Yield the evaluations beside a collection's stages that are done, the oldest first."""
    roots = {stage.path.parent for stage in collection.stages}
    results = [file for root in roots for file in root.glob(f"{KIND}-*/{RESULT_FILE}")]
    for file in sorted(results, key=lambda file: (file.stat().st_mtime, str(file))):
        if (found := read_evaluation(StageDirectory(file.parent))) is not None:
            yield found


def read_evaluation(directory: StageDirectory) -> Evaluation | None:
    """Read what an evaluation asks; None where its specification cannot be read, as that of another user, and where it is
    not of the model of a stage."""
    try:
        spec = read_object(directory.spec_file) or {}
    except Unreadable:
        return None
    kind, inputs = kind_of(KIND), {name: Path(str(path)) for name, path in as_mapping(spec.get("inputs")).items()}
    if kind.evaluates not in inputs:
        return None
    asks = {
        key: value
        for key, value in flatten(as_mapping(spec.get("config"))).items()
        if matches_prefix(key, kind.result_keys) and key not in WHOSE and not has_no_effect_but(key, "name", "speed")
    }
    judges = tuple(path.parent.name for name, path in inputs.items() if name not in (kind.evaluates, "reference"))
    policy = inputs[kind.evaluates]
    if policy.name != directory.model.name:  # an average of the policy beside it, or a model that no stage made
        return None
    return Evaluation(directory.path, policy.parent.name, asks, judges)


def make_asked(
    collection: Collection, groups: Sequence[Group], evaluations: Sequence[Evaluation], is_composed: bool
) -> Asked:
    """Return evaluations in the groups of a report; those that are `is_composed` beside the evaluations of its points."""
    stages = {one.policy: read_stage(one.path, KIND, SummaryEntry()) for one in evaluations}
    placed = [replace(group, points=[place(point, stages, is_composed) for point in group.points]) for group in groups]
    taken = {point.stages[KIND].path for group in placed for point in group.points if KIND in point.stages}
    rest = [one for one in evaluations if stages[one.policy].path not in taken]
    others = gather_others(collection, [(one, stages[one.policy]) for one in rest], is_composed)
    return Asked("" if is_composed else describe(collection, evaluations), placed, others)


def place(point: Point, stages: Mapping[str, Stage], is_composed: bool) -> Point:
    """Return a point with the evaluation of its policy, given by the name of the policy; without one where there is none.
    What is composed keeps its own."""
    policy = next((point.stages[kind].name for kind in list_makers() if kind in point.stages), "")
    own = point.stages.get(KIND) if is_composed else None
    chosen = own or stages.get(policy)
    others = {kind: stage for kind, stage in point.stages.items() if kind != KIND}
    return replace(point, stages=others if chosen is None else others | {KIND: chosen})


def list_makers() -> list[str]:
    """Return the stages whose policies are evaluated, that of a point first which counts before others."""
    kind = kind_of(KIND)
    return [given.stage for given in kind.inputs if given.name == kind.evaluates and given.stage is not None]


def gather_others(collection: Collection, found: Sequence[tuple[Evaluation, Stage]], is_composed: bool) -> list[Group]:
    """Return the evaluated policies that are no point's own as groups, by kind where each seed has one of them; with points
    that have the seeds of those that come from the policy, so that the two are compared."""
    makers = {stage.name: stage for stage in collection.stages}
    seeds: dict[str, dict[str, list[Any]]] = {}
    for one, _ in found:
        users = [point for point in collection.points if makers[one.policy] in point.stages.values()]
        own = {to_yaml_text(point.seed): point.seed for point in users}
        asked = to_yaml_text(one.asks.get("seed"))
        known = seeds.setdefault(makers[one.policy].kind, {})
        known[one.policy] = [seed for text, seed in own.items() if not is_composed or text == asked]
    groups: dict[str, list[Point]] = {}
    for one, stage in found:
        kind = makers[one.policy].kind
        every = [to_yaml_text(seed) for own in seeds[kind].values() for seed in own]
        label = kind if len(set(every)) == len(every) else one.policy
        for seed in seeds[kind][one.policy]:
            point = Point(label, stage.path, stage.state, (), {"seed": seed}, {KIND: stage})
            groups.setdefault(label, []).append(point)
    return [Group(label, points) for label, points in groups.items()]


def describe(collection: Collection, evaluations: Sequence[Evaluation]) -> str:
    """Say in what evaluations differ from what the configuration of a point asks whose policy is evaluated: in the keys of
    the evaluation that differs in the fewest."""
    makers = {stage.name: stage for stage in collection.stages}
    differences = []
    for one in evaluations:
        config = collection.users(makers[one.policy])[0].config
        differences.append([f"{key}={to_yaml_text(v)}" for key, v in one.asks.items() if config.get(key) not in (v, AUTO)])
    told = min(differences, key=len)
    more = [f"and {len(told) - TOLD} more keys"] if len(told) > TOLD + 1 else []
    return ", ".join([*(told[:TOLD] if more else told), *more]) or "as the points are configured"
