"""What people prefer: records for training, and the win rate of one model over another. Imports no torch.

A record is a row of the shape `pairs` (rlhf/data/shapes.py): a prompt with a chosen and a rejected response. A tie, and two
answers that are both bad, are rows with a prompt alone: stages that learn from pairs count them as prompts without a pair.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.algo.errors import wilson_interval
from rlhf.config.errors import ConfigError

VERDICTS = ("left", "right", "tie", "both bad")
Record = dict[str, Any]


def make_pair(prompt: Any, verdict: str, shown: Mapping[str, Record], how: Record) -> Record:
    """Return the record of a verdict on two answers, `left` and `right`; `how` says who judged, when, and in which
    session."""
    record: Record = {"prompt": prompt}
    better = {"left": ("left", "right"), "right": ("right", "left")}.get(verdict)
    if better is not None:
        for side, name in zip(("chosen", "rejected"), better, strict=True):
            answer = shown[name]
            record |= {side: answer["response"], f"{side}_model": answer["model"]}
            record |= {f"{side}_fingerprint": answer["fingerprint"]}
    return {**record, "verdict": verdict, **how, "shown": [{"side": side, **answer} for side, answer in shown.items()]}


def make_ranking(prompt: Any, verdict: str, shown: Sequence[Record], ranks: Sequence[int], how: Record) -> Record:
    """Return the record of an order of answers, 1 the best, a row of the shape `ranked`; without an order there are no
    `answers`."""
    ranked = sorted(zip(ranks, shown, strict=True), key=lambda entry: entry[0]) if verdict == "ranked" else []
    told = ("model", "fingerprint", "seed", "sample")
    answers = [{"answer": own["response"], "rank": rank, **{key: own[key] for key in told}} for rank, own in ranked]
    return {"prompt": prompt, "answers": answers, "verdict": verdict, **how, "shown": list(shown)}


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file, and wait until they have reached the disk. They begin a new line where a crash has cut the
    last one. Raises ConfigError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
            stream.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ConfigError("--output", path, f"it cannot be written ({error.strerror})", "give another file") from error


@dataclass(frozen=True)
class WinRate:
    """How often one model was preferred over another.

    Attributes:
        a: The other model.
        b: The model.
        wins: Comparisons in which b was preferred.
        losses: Comparisons in which a was.
        ties: Comparisons in which the answers were equally good.
        bad: Comparisons in which both were bad.
    """

    a: str
    b: str
    wins: int
    losses: int
    ties: int
    bad: int

    @property
    def decided(self) -> int:
        """Count the comparisons in which one answer was preferred."""
        return self.wins + self.losses

    def describe(self) -> Record:
        """Return counts, the share of decided comparisons that b won, and its interval; without any, null."""
        rate = self.wins / self.decided if self.decided else None
        low, high = (None, None) if rate is None else wilson_interval(rate, self.decided)
        return {**vars(self), "n": self.decided, "win": rate, "low": low, "high": high}


def count_wins(records: Iterable[Record], models: Sequence[str]) -> list[WinRate]:
    """Count the verdicts on each two models that were compared, of which the one that is earlier among `models` is b; of a
    model with itself there is no rate."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for record in records:
        names = sorted({answer["model"] for answer in record["shown"]}, key=models.index)
        if len(names) != 2:
            continue
        b, a = names
        winner = record.get("chosen_model")
        found = record["verdict"] if winner is None else "b" if winner == b else "a"
        counts.setdefault((a, b), Counter())[found] += 1
    return [WinRate(a, b, c["b"], c["a"], c["tie"], c["both bad"]) for (a, b), c in counts.items()]
