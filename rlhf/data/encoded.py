"""Token ids of a record. Imports no torch."""

from dataclasses import dataclass
from typing import Any

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which is slow to import


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of a response to it.

    Attributes:
        prompt: The ids of the prompt.
        response: The ids of the response, with what ends it.
        cut: Whether the response's end is missing.
        loss: 0 or 1 for each token of prompt and response: whether the assistant said it, in this or an earlier turn; None
            where it said the response alone.
        margin: Of the preferred response of a pair, by how much it was preferred, as the record says; 0 where it does not.
    """

    prompt: list[int]
    response: list[int]
    cut: bool = False
    loss: list[int] | None = None
    margin: float = 0.0

    @property
    def length(self) -> int:
        """The tokens of prompt and response."""
        return len(self.prompt) + len(self.response)
