"""The reference's log-probabilities, kept in a stage's directory, so that a resumed stage reads the same numbers."""

from dataclasses import dataclass
from pathlib import Path

from rlhf.experiment.files import read_object
from rlhf.experiment.store import write_json

Logprobs = list[tuple[float, float]]


@dataclass(frozen=True)
class ReferenceFile:
    """A file of the log-probabilities of pairs, chosen and rejected, in nats."""

    path: Path

    def read(self, count: int) -> Logprobs | None:
        """Return the log-probabilities of `count` pairs; None where the file is not there. Raises Unreadable where it is
        damaged."""
        found = read_object(self.path)
        pairs = None if found is None else found.get("logprobs")
        return (
            [(chosen, rejected) for chosen, rejected in pairs] if isinstance(pairs, list) and len(pairs) == count else None
        )

    def write(self, logprobs: Logprobs) -> None:
        """Write the log-probabilities; a reader finds all of them or no file."""
        write_json(self.path, {"logprobs": logprobs})
