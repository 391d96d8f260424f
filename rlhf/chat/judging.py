"""Blind comparisons: a person asks, two models answer in random order, and the person says which answer is better."""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.chat.conversation import Turn, describe_turn
from rlhf.chat.http import Unjudgeable, check_name, now, write_lines
from rlhf.chat.model import ChatModel, Draw, Messages, TooLong, describe_unreadable
from rlhf.chat.preferences import VERDICTS, Record, append_records, count_wins, make_pair
from rlhf.config.schema import Rollout
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message
from rlhf.data.records import simplify_prompt
from rlhf.rewards.texts import to_plain
from rlhf.runtime.seeds import random_stream

SIDES = ("left", "right")


@dataclass
class Side:
    """An answer that a person sees, and the model that gave it, which the person does not."""

    model: ChatModel
    rollout: Rollout
    turn: Turn
    is_begun: bool = False
    is_done: bool = False

    def pieces(self) -> Iterator[Record]:
        """Yield the answer in pieces, then how it ended. It can be asked for once."""
        if self.is_begun:
            raise Unjudgeable("this answer is being written already")
        self.is_begun = True
        for piece in self.turn.answer:
            yield {"text": piece}
        self.is_done = True
        answer = self.turn.answer
        notes = ([] if answer.ended else ["cut"]) + ([f"{answer.dropped} turns not read"] if answer.dropped else [])
        yield {"end": True, "note": ", ".join(notes)}

    @property
    def record(self) -> Record:
        """What is kept of the answer."""
        return {key: value for key, value in describe_turn(self.model, self.rollout, self.turn).items() if key != "prompt"}


@dataclass
class Judging:
    """A person's session: one conversation at a time, which goes on with the better answer.

    Attributes:
        models: The models, each with how it is sampled; of more than two, two are drawn for each question.
        seed: What order and answers are drawn from.
        output: The file that records are added to.
        annotator: Who judges.
        name: The session's name.
    """

    models: Sequence[tuple[ChatModel, Rollout]]
    seed: int
    output: Path
    annotator: str
    name: str = field(default_factory=lambda: secrets.token_hex(6))
    system: str | None = None
    said: list[Message] = field(default_factory=list)
    question: str | None = None
    sides: dict[str, Side] = field(default_factory=dict)
    round: int = 0
    records: list[Record] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, question: str) -> None:
        """Have two models answer a question, in random order. Raises Unjudgeable where they cannot."""
        if not question.strip():
            raise Unjudgeable("write a question")
        with self.lock:
            if self.question is not None:
                raise Unjudgeable("judge the last answers first, or begin a new conversation")
            sides = self.draw_sides(self.prompt(question.strip()))
            self.round, self.question, self.sides = self.round + 1, question.strip(), sides

    def prompt(self, question: str) -> Messages:
        """Return the conversation up to a question."""
        system = () if self.system is None else (Message("system", self.system),)
        return (*system, *self.said, Message("user", question))

    def draw_sides(self, prompt: Messages) -> dict[str, Side]:
        """Draw which models answer on which side, and begin their answers. Each side has random numbers of its own: models
        that resemble each other would say the same with equal ones."""
        order = random_stream(self.seed, "order", self.round).permutation(len(self.models))[:2]
        found = {}
        for sample, (side, number) in enumerate(zip(SIDES, order, strict=True)):
            (model, rollout), draw = self.models[number], Draw(self.seed, self.round, sample)
            try:
                found[side] = Side(model, rollout, Turn(prompt, model.answer(prompt, rollout, draw), draw, {}))
            except (TooLong, Dropped) as error:
                raise Unjudgeable(describe_unreadable(error)) from error
        return found

    def judge(self, verdict: str) -> None:
        """Keep a verdict on the two answers, and go on with the better one; after a tie with the left one, and where both
        are bad as if the question had not been asked. Raises Unjudgeable."""
        if verdict not in VERDICTS:
            raise Unjudgeable(f"there is no verdict {verdict!r}")
        with self.lock:
            if self.question is None or not all(side.is_done for side in self.sides.values()):
                raise Unjudgeable("both answers must be written to their end first")
            shown = {name: side.record for name, side in self.sides.items()}
            if verdict in SIDES and shown["left"]["response"] == shown["right"]["response"]:
                raise Unjudgeable("the answers are the same: say tie or both bad")
            prompt = to_plain(simplify_prompt(self.prompt(self.question)))
            record = make_pair(prompt, verdict, shown, self.describe())
            append_records(self.output, [record])
            self.records.append(record)
            if verdict != "both bad":
                kept = shown[verdict if verdict in SIDES else "left"]["response"]
                self.said += [Message("user", self.question), Message("assistant", kept)]
            self.question, self.sides = None, {}

    def describe(self) -> Record:
        """Return who judges now, and in which session."""
        return {"annotator": self.annotator, "time": now(), "session": self.name, "round": self.round, "seed": self.seed}

    def clear(self, system: str | None) -> None:
        """Begin a new conversation, with this system message; answers that were not judged are gone."""
        with self.lock:
            self.system, self.said, self.question, self.sides = system or None, [], None, {}

    def state(self) -> dict[str, Any]:
        """Return what the page shows, which does not say who answers."""
        said = [{"role": message.role, "content": message.content} for message in self.said]
        return {"said": said, "question": self.question, "round": self.round, "judged": len(self.records)}

    def results(self) -> dict[str, Any]:
        """Return the win rates of the session."""
        names = [model.policy.name for model, _ in self.models]
        return {"pairs": [rate.describe() for rate in count_wins(self.records, names)], "file": str(self.output)}


def make_judging(
    models: Sequence[tuple[ChatModel, Rollout]], seed: int, output: Path, annotator: str, system: str | None
) -> Judging:
    """Return a new session. Raises Unjudgeable for a name that is none."""
    return Judging(models, seed, output, check_name(annotator), system=system or None)


@dataclass
class Rooms:
    """The sessions of all who judge; each has a seed of its own, counted from the one that was given."""

    models: Sequence[tuple[ChatModel, Rollout]]
    seed: int
    output: Path
    system: str | None
    sessions: dict[str, Judging] = field(default_factory=dict)
    html: str = "page.html"

    def open(self, annotator: str) -> Judging:
        """Begin a session."""
        found = make_judging(self.models, self.seed + len(self.sessions), self.output, annotator, self.system)
        self.sessions[found.name] = found
        return found

    def find(self, name: Any) -> Judging:
        """Return a session. Raises Unjudgeable where there is none, as after the server was started anew."""
        if name not in self.sessions:
            raise Unjudgeable("this session is over: load the page again")
        return self.sessions[name]

    def act(self, action: str, given: dict[str, Any]) -> dict[str, Any]:
        """Carry out what the page asks for, and return what it shows then. Raises Unjudgeable."""
        text: Callable[[str], str] = lambda name: str(given.get(name) or "")  # noqa: E731
        if action == "open":
            session = self.open(text("annotator"))
            return {"session": session.name, "system": session.system or "", **session.state()}
        session = self.find(given.get("session"))
        if action == "results":
            return session.results()
        if action == "ask":
            session.ask(text("question"))
        elif action == "judge":
            session.judge(text("verdict"))
        elif action == "clear":
            session.clear(text("system"))
        else:
            raise Unjudgeable(f"there is no action {action!r}")
        return session.state()

    def stream(self, given: dict[str, Any]) -> Iterator[str]:
        """Yield the answer of one side as JSON Lines. Raises Unjudgeable."""
        session, side = self.find(given.get("session")), given.get("side")
        if side not in SIDES or side not in session.sides:
            raise Unjudgeable("there is no such answer")
        return write_lines(session.sides[side].pieces())
