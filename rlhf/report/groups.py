"""Points that differ in nothing but the seed, and what tells such groups apart."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rlhf.catalog.stage import is_benchmark
from rlhf.config.keys import has_no_effect_but
from rlhf.report.collect import Collection, Point, natural_key
from rlhf.report.stage import Stage

# Keys without an effect of their own that name an option, which decides other keys.
OPTIONS = ("algorithm",)


@dataclass(frozen=True, eq=False)
class Group:
    """Points of one configuration under several seeds; `label` says what sets it apart from the other groups, `settings`
    the same by key: each swept key with its option or value as it was typed."""

    label: str
    points: list[Point]
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """The kinds of its stages."""
        return list(dict.fromkeys(kind for point in self.points for kind in point.stages))

    def stages(self, kind: str) -> list[Stage]:
        """Its stages of one kind, each once: a result that two points share is one result."""
        return list({p.stages[kind].path: p.stages[kind] for p in self.points if kind in p.stages}.values())

    def values(self, kind: str, metric: str) -> list[float]:
        """Return a final metric of each of its stages that has it."""
        return [stage.metrics[metric] for stage in self.stages(kind) if metric in stage.metrics]


def group_points(collection: Collection) -> list[Group]:
    """Return the groups, in the natural order of what tells them apart."""
    # A point whose configuration is lost belongs where its overrides, but for the seed, belong.
    twins = {without_seed(point): identity(point) for point in collection.points if point.config and point.overrides}
    members: dict[str, list[Point]] = {}
    for point in collection.points:
        key = identity(point) if point.config else twins.get(without_seed(point), identity(point))
        members.setdefault(key, []).append(point)
    sets = list(members.values())
    if len(sets) == 1:
        return [Group(sole_label(collection), sets[0])]
    settings = tell_apart(sets)
    labels = [", ".join(f"{key}={value}" for key, value in own.items()) or "default" for own in settings]
    labels = [label if labels.count(label) == 1 else f"{label} ({number})" for number, label in enumerate(labels, 1)]
    found = [Group(label, points, own) for label, points, own in zip(labels, sets, settings, strict=True)]
    return sorted(found, key=lambda group: natural_key(group.label))


def identity(point: Point) -> str:
    """All that decides a point's results but the seed, as text."""
    return json.dumps(deciding(point), sort_keys=True, default=str)


def without_seed(point: Point) -> tuple[str, ...]:
    """Return the overrides of a point without its seed."""
    return tuple(sorted(entry for entry in point.overrides if key_of(entry) != "seed"))


def deciding(point: Point) -> dict[str, Any]:
    """Return the dotted keys that make a group, from the configuration or, without one, from the overrides."""
    known = point.config or dict(entry.lstrip("+").partition("=")[::2] for entry in point.overrides)
    measures_speed = is_of_benchmark(point)
    return {key: value for key, value in known.items() if makes_group(key, measures_speed)}


@lru_cache(maxsize=2**16)  # every point has the same few hundred keys
def makes_group(key: str, measures_speed: bool) -> bool:
    """Tell whether points with different values of a key are different groups: not by the seed, and not by keys that never
    change a result, which of a benchmark are names alone. `stages` says what there is to compare."""
    if key in ("seed", "stages"):
        return key == "stages"
    return not (has_no_effect_but(key, "name") if measures_speed else has_no_effect_but(key, "name", "speed"))


def is_of_benchmark(point: Point) -> bool:
    """Whether a point's results are speeds."""
    return any(map(is_benchmark, point.stages))


def sole_label(collection: Collection) -> str:
    """Return the label of the only group."""
    return "all points" if len(collection.points) > 1 else collection.points[0].name


def tell_apart(sets: list[list[Point]]) -> list[dict[str, str]]:
    """Return what tells each set of points from the others, by key: as it was typed where that does, else the keys of the
    configuration that differ."""
    typed = [set(point.overrides) for points in sets for point in points if point.overrides]
    common = set.intersection(*typed) if typed else set()
    settings = []
    for points in sets:
        first = next((point for point in points if point.overrides), points[0])
        own = [
            unquote(entry)
            for entry in first.overrides
            if entry not in common and (key_of(entry) in OPTIONS or makes_group(key_of(entry), is_of_benchmark(first)))
        ]
        settings.append({entry.partition("=")[0]: entry.partition("=")[2] for entry in own})
    if len({tuple(own.items()) for own in settings}) < len(sets) or sum(not own for own in settings) > 1:
        return by_keys(sets)
    return settings


def unquote(override: str) -> str:
    """Return an override as it was typed: Hydra shows it with quotes around a value such as `zero=3`."""
    return re.sub(r"='([^']*)'$", r"=\1", override)


def key_of(override: str) -> str:
    """Return the key of an override as Hydra writes it."""
    return override.lstrip("+~").partition("=")[0]


def by_keys(sets: list[list[Point]], most: int = 4) -> list[dict[str, str]]:
    """Tell each set of points apart by the keys that differ; where they are many, by the first few."""
    settings = [deciding(points[0]) for points in sets]
    keys = differing_keys(settings)[:most]
    return [{key: to_yaml_text(own.get(key)) for key in keys} for own in settings]


def differing_keys(settings: list[dict[str, Any]]) -> list[str]:
    """Return the keys that do not have one and the same value everywhere, in the order of their first appearance."""
    keys: Iterable[str] = dict.fromkeys(key for own in settings for key in own)
    return [key for key in keys if differs(key, settings)]


def differs(key: str, settings: list[dict[str, Any]]) -> bool:
    """Whether a key does not have one and the same value everywhere."""
    first = repr(settings[0].get(key))
    if all(key in own and repr(own[key]) == first for own in settings):
        return False
    return len({(key in own, to_yaml_text(own.get(key))) for own in settings}) > 1


def to_yaml_text(value: Any) -> str:
    """Return a configuration value as YAML people write it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
