"""The same prompts answered by the models that training started from and by each group."""

from dataclasses import dataclass
from typing import Any

from rlhf.catalog.stage import Side
from rlhf.experiment.files import as_float, as_text
from rlhf.report.collect import Point
from rlhf.report.groups import Group, to_yaml_text
from rlhf.report.stage import Stage

PROMPTS, CHARACTERS = 5, 1500
# Rows of samples.jsonl with their sides, by prompt.
Rows = dict[str, tuple[dict[str, Any], tuple[Side, ...]]]


@dataclass(frozen=True)
class Answer:
    """One answer, by whom, with its score and gold reward. `group` is the number of the group, None for a model that
    training started from."""

    who: str
    group: int | None
    text: str
    score: float | None
    gold: float | None


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt with its answers."""

    text: str
    answers: list[Answer]


def compare_answers(groups: list[Group]) -> tuple[Any, list[Prompt]]:
    """Return a handful of prompts with the answers of one seed's points, and that seed: the one that most groups have."""
    seed = common_seed(groups)
    rows = [group_rows(group, seed) for group in groups]
    counted: dict[str, int] = {}
    for own in rows:
        for prompt in own:
            counted[prompt] = counted.get(prompt, 0) + 1
    chosen = sorted(counted, key=lambda prompt: -counted[prompt])[:PROMPTS]
    return seed, [Prompt(shorten(prompt), answers(prompt, groups, rows)) for prompt in chosen]


def common_seed(groups: list[Group]) -> Any:
    """Return the seed for which most groups have samples, the first of those."""
    seeds: dict[str, list[Any]] = {}
    for group in groups:
        for seed in {to_yaml_text(point.seed): point.seed for point in group.points if has_samples(point)}.values():
            seeds.setdefault(to_yaml_text(seed), []).append(seed)
    most = max((len(found) for found in seeds.values()), default=0)
    able = [found[0] for found in seeds.values() if len(found) == most]
    return min(able, key=lambda seed: (len(to_yaml_text(seed)), to_yaml_text(seed)), default=None)


def has_samples(point: Point) -> bool:
    """Whether a stage of the point has answered held-out prompts."""
    return answering_stage(point) is not None


def answering_stage(point: Point) -> Stage | None:
    """Return the last stage of a point that has answered held-out prompts, in the order of the pipeline."""
    able = [stage for stage in point.stages.values() if stage.samples and stage.display.sides]
    return able[-1] if able else None


def group_rows(group: Group, seed: Any) -> Rows:
    """Return a group's rows of its last evaluation by prompt, each with its sides: of the point with that seed, else of
    its first that has any."""
    able = sorted((point for point in group.points if has_samples(point)), key=lambda point: point.seed != seed)
    stage = answering_stage(able[0]) if able else None
    return {} if stage is None else {as_text(row.get("prompt")) or "": (row, stage.display.sides) for row in stage.samples}


def answers(prompt: str, groups: list[Group], rows: list[Rows]) -> list[Answer]:
    """Return the answers of the models that training started from, one for each that differs, then every group's."""
    starts: dict[str, Answer] = {}
    trained = []
    for index, (group, own) in enumerate(zip(groups, rows, strict=True)):
        if prompt in own:
            row, (*earlier, last) = own[prompt]
            for side in earlier:
                before = answer(side.label, None, row, side)
                starts.setdefault(before.text, before)
            trained.append(answer(group.label, index, row, last))
    return [*starts.values(), *trained]


def answer(who: str, group: int | None, row: dict[str, Any], side: Side) -> Answer:
    """Return one side of a row of samples.jsonl, as the answer of `who`."""
    text, key = shorten(as_text(row.get(side.key)) or ""), side.key
    return Answer(who, group, text, as_float(row.get(f"{key}_score")), as_float(row.get(f"{key}_gold")))


def shorten(text: str) -> str:
    """Cut a text to CHARACTERS characters, and say how many more there are."""
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}… ({len(text) - CHARACTERS:,} more characters)"
