"""A response as functions see it. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# The part of a record that says which rewards apply to it, by name; without it all do.
APPLIES = "rewards"
# Where a span of a response ends, in characters, and its value.
Span = tuple[int, float]


@dataclass(frozen=True)
class Sample:
    """A prompt, a response to it, and what else the prompt's record says, as the reference answer. A prompt that is a
    conversation is a list of messages, {"role": ..., "content": ...}. `ended` tells whether the response came to its
    end."""

    prompt: Any
    response: str
    record: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = True

    def is_scored_by(self, name: str) -> bool:
        """Whether the reward of this name applies, as far as the record says."""
        named = self.record.get(APPLIES)
        return named is None or name in ([named] if isinstance(named, str) else named)


class SpannedScore(float):
    """A score of which a part falls on spans of the response; as a number it is the whole."""

    spans: tuple[Span, ...]

    def __new__(cls, score: float, spans: Iterable[Span] = ()) -> "SpannedScore":
        """Return a score of this sum, with the spans that are part of it."""
        made = super().__new__(cls, score)
        made.spans = tuple(spans)
        return made


class Reward(Protocol):
    """What scores samples by their texts. It may work in the background: all rewards are asked before any is waited for."""

    def ask(self, samples: Sequence[Sample]) -> None:
        """Begin to score samples."""

    def answer(self) -> list[float | None]:
        """Wait for the scores of the samples that were asked for last; None where the reward does not apply. Raises
        ConfigError for one that cannot be scored."""

    def close(self) -> None:
        """Free what it holds."""
