"""Labelling: people rank the responses of a pool, blind and in random order, and go on where they stopped."""

import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.chat.http import Unjudgeable, check_name, now
from rlhf.chat.pool import Item, Prompt, Response
from rlhf.chat.preferences import Record, append_records, make_pair, make_ranking
from rlhf.config.errors import ConfigError
from rlhf.experiment.files import read_lines

SIDES = ("left", "right")
# What a person may say instead of an order.
TIE, BAD = "tie", "both bad"


@dataclass
class Labeller:
    """A person who ranks, with what is left for that person to do."""

    annotator: str
    waiting: list[Item]
    done: int
    name: str = field(default_factory=lambda: secrets.token_hex(6))
    round: int = 0


@dataclass
class Labels:
    """The page on which a pool is ranked.

    Attributes:
        items: What is ranked.
        most: Responses of an item, at most; of two a record is a pair, of more a ranking.
        seed: What the order is drawn from.
        output: The file that records are added to.
    """

    items: Sequence[Item]
    most: int
    seed: int
    output: Path
    labellers: dict[str, Labeller] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    html: str = "label.html"

    def act(self, action: str, given: dict[str, Any]) -> dict[str, Any]:
        """Carry out what the page asks for, and return what it shows then. Raises Unjudgeable."""
        with self.lock:
            if action == "open":
                return self.show(self.open(str(given.get("annotator") or "")))
            person = self.labellers.get(str(given.get("session")))
            if person is None:
                raise Unjudgeable("this session is over: load the page again")
            if not person.waiting or given.get("item") != person.waiting[0].digest:
                raise Unjudgeable("this was ranked already: load the page again")
            if action == "rank":
                self.rank(person, str(given.get("verdict") or ""), given.get("ranks"))
            elif action == "skip":
                person.waiting.append(person.waiting.pop(0))
            else:
                raise Unjudgeable(f"there is no action {action!r}")
            return self.show(person)

    def stream(self, given: dict[str, Any]) -> Any:
        """Nothing is written while a person waits. Raises Unjudgeable."""
        raise Unjudgeable("there is no such answer")

    def open(self, annotator: str) -> Labeller:
        """Begin a session, with what the file does not hold of this person yet."""
        name = check_name(annotator)
        ranked = {record.get("item") for record in read_records(self.output) if record.get("annotator") == name}
        waiting = [item for item in self.items if item.digest not in ranked]
        person = Labeller(name, waiting, len(self.items) - len(waiting))
        self.labellers[person.name] = person
        return person

    def show(self, person: Labeller) -> dict[str, Any]:
        """Return what the page shows, which does not say who answered."""
        shown: dict[str, Any] = {"session": person.name, "done": person.done, "of": len(self.items), "item": None}
        if person.waiting:
            item = person.waiting[0]
            responses = [
                {"text": found.response, "note": "cut" if found.ended is False else ""}
                for found in item.arrange(self.seed, person.annotator)
            ]
            shown |= {"item": item.digest, "prompt": item.text, "responses": responses}
        return shown

    def rank(self, person: Labeller, verdict: str, ranks: Any) -> None:
        """Keep an order of the responses, 1 the best, or that all are equal or bad. Raises Unjudgeable."""
        item = person.waiting[0]
        responses = item.arrange(self.seed, person.annotator)
        if verdict not in (TIE, BAD):
            ranks = check_ranks(ranks, len(responses))
            verdict = TIE if max(ranks) == 1 else "ranked"
        how = {"annotator": person.annotator, "time": now(), "session": person.name, "round": person.round + 1}
        how |= {"seed": self.seed, "item": item.digest}
        append_records(self.output, [self.make_record(item.prompt, verdict, responses, ranks, how)])
        person.round, person.done = person.round + 1, person.done + 1
        person.waiting.pop(0)

    def make_record(
        self, prompt: Prompt, verdict: str, responses: Sequence[Response], ranks: list[int], how: Record
    ) -> Record:
        """Return the record of a verdict, as the readers of data take it."""
        shown = [asdict(response) for response in responses]
        if self.most > 2:
            return make_ranking(prompt, verdict, shown, ranks, how)
        side = SIDES[ranks[1] < ranks[0]] if verdict == "ranked" else verdict
        return make_pair(prompt, side, dict(zip(SIDES, shown, strict=True)), how)


def check_ranks(ranks: Any, count: int) -> list[int]:
    """Return ranks without gaps. Raises Unjudgeable for what is not one rank for each response."""
    is_whole = isinstance(ranks, list) and len(ranks) == count and all(type(rank) is int and rank > 0 for rank in ranks)
    if not is_whole:
        raise Unjudgeable("give each response a rank")
    order = sorted(set(ranks))
    return [1 + order.index(rank) for rank in ranks]


def read_records(output: Path) -> list[Record]:
    """Return the records that a file holds already."""
    return [record for record in read_lines(output) if record is not None]


def check_output(output: Path, most: int) -> None:
    """Refuse a file of the other kind of records, which no data set could be read from together. Raises ConfigError."""
    others = [record for record in read_records(output) if ("answers" in record) != (most > 2)]
    if others:
        held, fix = ("pairs", "--label 2") if most > 2 else ("rankings", "--label 3 or more")
        raise ConfigError("--output", output, f"it holds {held}", f"give another file, or {fix}")
