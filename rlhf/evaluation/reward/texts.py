"""The texts of a diagnosis, each once, and what reward models make of them. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dataset import Comparison, Prompt
from rlhf.evaluation.reward.probes import Probe
from rlhf.evaluation.reward.rewardbench import Item
from rlhf.evaluation.reward.statistics import Array

# A prompt and a response.
Text = tuple[Prompt, str]


def collect_texts(pairs: Iterable[Comparison], probes: Iterable[Probe] = (), items: Iterable[Item] = ()) -> list[Text]:
    """Return the different texts of pairs, of probes and of RewardBench."""
    found: dict[Text, None] = {}
    for pair in pairs:
        found |= {(pair.prompt, pair.chosen): None, (pair.prompt, pair.rejected): None}
    for probe in probes:
        found |= {(probe.prompt, probe.better): None, (probe.prompt, probe.worse): None}
    for item in items:
        found |= {(item.prompt, answer): None for answer in item.answers}
    return list(found)


@dataclass(frozen=True)
class Reading:
    """What a reward model makes of texts.

    Attributes:
        scores: The scores, [B]; NaN for a text that cannot be read.
        scale: What they have been divided by since the model was trained.
        lengths: The tokens of each response, [B].
        cut: Whether the response is cut, as it is longer than data.max_response_tokens, [B].
        reasons: Why each text cannot be read; "" for one that can.
    """

    scores: Array
    scale: float
    lengths: Array
    cut: NDArray[np.bool_]
    reasons: Sequence[str]


@dataclass(frozen=True)
class ReadTexts:
    """Texts with their scores by the members of an ensemble, or by one reward model (M = 1).

    Attributes:
        places: The number of each text.
        scores: The scores, [M, B]; NaN for a text that cannot be read.
        scales: What each member's scores have been divided by since it was trained, [M].
        lengths: The tokens of each response as the first member reads it, [B].
        cut: Whether the response is cut, as it is longer than data.max_response_tokens, [B].
        reasons: Why each text cannot be read; "" for one that can.
    """

    places: Mapping[Text, int]
    scores: Array
    scales: Array
    lengths: Array
    cut: NDArray[np.bool_]
    reasons: Sequence[str]

    def find(self, prompt: Prompt, response: str) -> int:
        """Return the number of a text."""
        return self.places[prompt, response]

    @property
    def mean(self) -> Array:
        """The mean score over the members, [B]."""
        mean: Array = self.scores.mean(axis=0)
        return mean

    @property
    def logits(self) -> Array:
        """The mean over the members of the scores that they were trained with, [B]: those whose differences have the
        probabilities of the Bradley-Terry model."""
        logits: Array = (self.scores * self.scales[:, None]).mean(axis=0)
        return logits


def join_readings(texts: Sequence[Text], members: Sequence[Reading]) -> ReadTexts:
    """Return texts as the members of an ensemble, or one reward model, read them; one that a member cannot read has no
    score."""
    return ReadTexts(
        {text: number for number, text in enumerate(texts)},
        np.stack([member.scores for member in members]),
        np.array([member.scale for member in members]),
        members[0].lengths,
        members[0].cut,
        [next(filter(None, reasons), "") for reasons in zip(*(member.reasons for member in members), strict=True)],
    )
