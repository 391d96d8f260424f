"""A data set: its records, and what the stages make of them: demonstrations, comparisons and prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.catalog.stage import SetCounts

# What a part of a data set gives to the stages: the names of the lists of a Split.
KINDS = ("demonstrations", "comparisons", "labelled", "prompts")


@dataclass(frozen=True)
class Message:
    """A turn of a conversation: who speaks, and the text."""

    role: str
    content: str


# A prompt: one text, or the messages of a conversation, of which the last is the user's.
Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Record:
    """A prompt with the responses to it, whatever the shape of the data set that it comes from.

    Attributes:
        prompt: The text of the prompt, or the messages up to the response, of which the last is the user's.
        response: The response to imitate. Where it is None, `chosen` is imitated, or the best of `ranked`.
        chosen: The preferred response of a pair.
        rejected: The other response of the pair.
        ranked: Responses with scores, of which a higher one is preferred; those of one score are no pair.
        labelled: Responses with whether each is desirable.
        meta: Whatever else is known of the prompt, for rewards and evaluation: the reference answer (`answer`), the source,
            scores, an id.
    """

    prompt: Prompt
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    ranked: tuple[tuple[str, float], ...] = ()
    labelled: tuple[tuple[str, bool], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response to imitate."""

    prompt: Prompt
    response: str


@dataclass(frozen=True)
class Comparison:
    """Two responses to a prompt, of which the first was preferred, and by how much, where the record says it; `meta` is
    what else the record says."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Labelled:
    """A response to a prompt, and whether it is desirable."""

    prompt: Prompt
    response: str
    desirable: bool


@dataclass(frozen=True)
class Responses(Sequence[Labelled]):
    """Responses with a label, made when they are asked for: the two of each of `pairs`, of which the preferred one is
    desirable, and those that have a label `alone`."""

    pairs: Sequence[Comparison] = ()
    alone: Sequence[Labelled] = ()

    def __len__(self) -> int:
        return 2 * len(self.pairs) + len(self.alone)

    def __getitem__(self, number: Any) -> Any:
        """Return a response, or, of a slice, a list of them."""
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        if number >= 2 * len(self.pairs):
            return self.alone[number - 2 * len(self.pairs)]
        pair = self.pairs[number // 2]
        return Labelled(pair.prompt, pair.rejected if number % 2 else pair.chosen, number % 2 == 0)

    def count_desirable(self) -> int:
        """Return how many of them are desirable."""
        return len(self.pairs) + sum(response.desirable for response in self.alone)


@dataclass(frozen=True)
class Split:
    """Records for the stages.

    Attributes:
        demonstrations: Prompts with a response to imitate.
        comparisons: Prompts with two responses.
        prompts: Each different prompt once.
        labelled: Prompts with a response and its label, those of the comparisons among them.
        left_out: How many rows hold no record, or one that no stage can read, by the reason.
        meta: What is known of a prompt besides its text, by the prompt.
        shape: The name of the shape that the rows were read in; "" for records that are made.
        rows: How many rows were read.
        unread: How many records hold nothing of a kind (`demonstrations`, `comparisons`, `labelled`), or hold a prompt once
            more (`prompts`).
        sets: The sets of a mixture, by name.
    """

    demonstrations: list[Demonstration]
    comparisons: list[Comparison]
    prompts: list[Prompt]
    labelled: Responses = field(default_factory=Responses)
    left_out: dict[str, int] = field(default_factory=dict)
    meta: dict[Prompt, Mapping[str, Any]] = field(default_factory=dict)
    shape: str = ""
    rows: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    sets: Mapping[str, SetCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Training and held-out records. `gold` judges (prompt, response) where a true reward is known; training never sees
    it. `agreement` is the accuracy that a perfect judge has on the held-out comparisons, given their label noise."""

    train: Split
    heldout: Split
    gold: Callable[[Prompt, str], float] | None = field(default=None)
    agreement: float | None = field(default=None)
