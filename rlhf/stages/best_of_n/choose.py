"""Which responses to a prompt become a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.config.schema import BestOfN
from rlhf.rewards.texts import to_plain


@dataclass(frozen=True)
class Answers:
    """The n responses to a prompt.

    Attributes:
        number: The number of the prompt in its part of the data set.
        responses: Their texts.
        scores: What the judge says of each; None where no reward applies.
        gold: The gold rewards; None where there is none.
        ended: Whether each came to its end.
        lengths: Tokens of each, end-of-text included.
    """

    number: int
    responses: list[str]
    scores: list[float | None]
    gold: list[float | None]
    ended: list[bool]
    lengths: list[int]

    @property
    def candidates(self) -> list[int]:
        """The responses that may be chosen: one that did not come to its end would teach to stop in the middle."""
        return [i for i, score in enumerate(self.scores) if self.ended[i] and score is not None]

    def score(self, index: int) -> float:
        """Return the score of a response; -inf of one that cannot be chosen."""
        score = self.scores[index]
        return -float("inf") if score is None or not self.ended[index] else score


class NoRecord(Exception):
    """Why a prompt makes no record: the name of the metric that counts it."""


def choose(answers: Answers, made: BestOfN, random: np.random.Generator) -> tuple[int, int | None]:
    """Return the best response and, for pairs, its rival. Of equal scores the first response is the best one. Raises
    NoRecord."""
    known = answers.candidates
    if len(known) < (2 if made.format == "pairs" else 1):
        raise NoRecord("data/left_out")
    best = max(known, key=answers.score)
    if made.format == "responses":
        return best, None
    others = [index for index in known if index != best]
    rival = min(others, key=answers.score) if made.rival == "worst" else others[int(random.integers(len(others)))]
    if answers.score(best) == answers.score(rival) or answers.responses[best] == answers.responses[rival]:
        raise NoRecord("data/ties")
    return best, rival


def make_row(prompt: Any, meta: Mapping[str, Any], answers: Answers, best: int, rival: int | None) -> dict[str, Any]:
    """Return a record as `data.converter=pairs` reads it, with the scores by which it was made."""
    row = {**meta, "prompt": to_plain(prompt)}
    sides = {"response": best} if rival is None else {"chosen": best, "rejected": rival}
    row |= {side: answers.responses[index] for side, index in sides.items()}
    for side, index in sides.items():
        row[f"score_{side}"] = answers.scores[index]
        if answers.gold[index] is not None:
            row[f"gold_{side}"] = answers.gold[index]
    return row


def show_row(prompt: str, answers: Answers, keys: Sequence[str]) -> dict[str, Any]:
    """Return the best and the worst response that may be chosen, for samples.jsonl, under these keys."""
    known = answers.candidates
    row: dict[str, Any] = {"prompt": prompt}
    for key, index in zip(keys, (max(known, key=answers.score), min(known, key=answers.score)), strict=True):
        row |= {key: answers.responses[index], f"{key}_score": answers.scores[index]}
        row |= {} if answers.gold[index] is None else {f"{key}_gold": answers.gold[index]}
    return row
