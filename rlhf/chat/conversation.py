"""A conversation with one model, and what is kept of it."""

import time
from dataclasses import dataclass, field
from typing import Any

from rlhf.chat.model import Answer, ChatModel, Draw, Messages
from rlhf.config.rollouts import SAMPLING
from rlhf.config.schema import Rollout
from rlhf.data.dataset import Message
from rlhf.data.records import simplify_prompt
from rlhf.rewards.texts import to_plain


@dataclass
class Turn:
    """A question with its answer: the conversation up to the question, and how the answer was drawn."""

    prompt: Messages
    answer: Answer
    draw: Draw
    record: dict[str, Any]


@dataclass
class Conversation:
    """A conversation with a model. Its turns are numbered on after it is cleared, so that no two answers of a session are
    drawn with the same numbers."""

    model: ChatModel
    rollout: Rollout
    seed: int
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    cleared: list[Turn] = field(default_factory=list)

    def prompt(self, question: str) -> Messages:
        """Return the conversation up to a question, as the model is asked."""
        system = () if self.system is None else (Message("system", self.system),)
        said = [(Message("user", t.prompt[-1].content), Message("assistant", t.answer.text)) for t in self.turns]
        return (*system, *(message for turn in said for message in turn), Message("user", question))

    def ask(self, question: str, sample: int = 0) -> Turn:
        """Begin the answer to a question. Raises TooLong or Dropped where it cannot be asked."""
        prompt = self.prompt(question)
        draw = Draw(self.seed, len(self.cleared) + len(self.turns), sample)
        return Turn(prompt, self.model.answer(prompt, self.rollout, draw), draw, {})

    def keep(self, turn: Turn) -> None:
        """Add a turn to the conversation, as far as its answer was written."""
        turn.record = describe_turn(self.model, self.rollout, turn)
        self.turns.append(turn)

    def clear(self) -> None:
        """Begin a new conversation; what was said stays in the transcript."""
        self.cleared, self.turns = self.cleared + self.turns, []


def describe_turn(model: ChatModel, rollout: Rollout, turn: Turn) -> dict[str, Any]:
    """Return the record of an answer: a prompt with a response, as data sets have them, and how it came about."""
    draw, answer = turn.draw, turn.answer
    return {
        "prompt": to_plain(simplify_prompt(turn.prompt)), "response": answer.text,
        "model": model.policy.name, "path": model.policy.given, "fingerprint": model.fingerprint,
        "seed": draw.seed, "turn": draw.turn, "sample": draw.sample,
        "ended": answer.ended, "tokens": len(answer.tokens), "turns_not_read": answer.dropped,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sampling": {name: getattr(rollout, name) for name in SAMPLING},
    }  # fmt: skip
