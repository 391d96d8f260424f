"""The same prompts answered by SFT and by each group."""

from dataclasses import dataclass
from typing import Any

from rlhf.experiment.files import as_float, as_text
from rlhf.report.groups import Group, to_yaml_text

PROMPTS, CHARACTERS = 5, 1500


@dataclass(frozen=True)
class Answer:
    """One answer, by whom (`group` is the number of the group, None for SFT), with its score and gold reward."""

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


def side_by_side(groups: list[Group]) -> tuple[Any, list[Prompt]]:
    """A handful of prompts with the answers of one seed's points, and that seed: the one that most groups have."""
    seed = common_seed(groups)
    rows = [group_rows(group, seed) for group in groups]
    counted: dict[str, int] = {}
    for own in rows:
        for prompt in own:
            counted[prompt] = counted.get(prompt, 0) + 1
    chosen = sorted(counted, key=lambda prompt: -counted[prompt])[:PROMPTS]
    return seed, [Prompt(shorten(prompt), answers(prompt, groups, rows)) for prompt in chosen]


def common_seed(groups: list[Group]) -> Any:
    """The seed for which most groups have samples, the first of those."""
    seeds: dict[str, list[Any]] = {}
    for group in groups:
        for seed in {to_yaml_text(point.seed): point.seed for point in group.points if has_samples(point)}.values():
            seeds.setdefault(to_yaml_text(seed), []).append(seed)
    most = max((len(found) for found in seeds.values()), default=0)
    able = [found[0] for found in seeds.values() if len(found) == most]
    return min(able, key=lambda seed: (len(to_yaml_text(seed)), to_yaml_text(seed)), default=None)


def has_samples(point: Any) -> bool:
    """Whether the point's PPO stage has answered held-out prompts."""
    return "ppo" in point.stages and bool(point.stages["ppo"].samples)


def group_rows(group: Group, seed: Any) -> dict[str, dict[str, Any]]:
    """A group's rows of its last evaluation by prompt: of the point with that seed, else of its first that has any."""
    able = sorted((point for point in group.points if has_samples(point)), key=lambda point: point.seed != seed)
    return {as_text(row.get("prompt")) or "": row for row in able[0].stages["ppo"].samples} if able else {}


def answers(prompt: str, groups: list[Group], rows: list[dict[str, dict[str, Any]]]) -> list[Answer]:
    """SFT's answers, one for each that differs, then every group's."""
    sft: dict[str, Answer] = {}
    ppo = []
    for index, (group, own) in enumerate(zip(groups, rows, strict=True)):
        if prompt in own:
            before = answer("SFT", None, own[prompt], "sft")
            sft.setdefault(before.text, before)
            ppo.append(answer(group.label, index, own[prompt], "ppo"))
    return [*sft.values(), *ppo]


def answer(who: str, group: int | None, row: dict[str, Any], side: str) -> Answer:
    """One side of a row of samples.jsonl."""
    text = shorten(as_text(row.get(side)) or "")
    return Answer(who, group, text, as_float(row.get(f"{side}_score")), as_float(row.get(f"{side}_gold")))


def shorten(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}… ({len(text) - CHARACTERS:,} more characters)"
