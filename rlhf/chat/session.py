"""A conversation on the terminal: lines are questions, words after a slash are commands."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from rlhf.chat.conversation import Conversation, Turn
from rlhf.chat.model import Answer, TooLong, describe_unreadable
from rlhf.chat.scores import Scorer
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal, make_printable, plural
from rlhf.data.cells import Dropped
from rlhf.experiment.store import write_atomic

HELP = """/system TEXT   set the system message; without TEXT, remove it
/clear         begin a new conversation
/retry         answer the last question again, with other random numbers
/undo          take back the last question and its answer
/score         the rewards of the last answer
/save [FILE]   write what was said, as records that data.files reads
/quit          end (also Ctrl-D); Ctrl-C stops an answer
//text         a question that begins with a slash"""


@dataclass
class Session:
    """A conversation with one model, or with several beside each other, which are asked the same.

    Attributes:
        conversations: A conversation with each model.
        build_scorer: Loads the rewards, when they are first asked for.
        output: Where answers go.
        notes: Where all else goes.
        transcript: The file that is written after each answer; None for none.
    """

    conversations: Sequence[Conversation]
    build_scorer: Callable[[], Scorer]
    output: Terminal
    notes: Terminal
    transcript: Path | None = None
    scorer: Scorer | None = None
    attempts: int = 0
    commands: dict[str, Callable[[str], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commands = {
            "system": self.set_system, "clear": self.clear, "retry": self.retry, "undo": self.undo,
            "score": self.score, "save": self.save, "help": lambda rest: self.note(HELP),
        }  # fmt: skip

    def run(self, lines: Iterable[str]) -> None:
        """Answer lines until they end or say /quit."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word in ("/quit", "/exit"):
                break
            try:
                if word.startswith("/") and not word.startswith("//"):
                    self.obey(word[1:], rest.strip())
                elif line.strip():
                    self.attempts = 0
                    self.ask(line.strip().removeprefix("/") if word.startswith("//") else line.strip())
            except ConfigError as error:
                self.notes.print_errors(error)
            except (TooLong, Dropped) as error:
                self.notes.print_errors(describe_unreadable(error))

    def obey(self, word: str, rest: str) -> None:
        """Carry out a command."""
        if word not in self.commands:
            self.notes.print_errors(f"there is no /{word}; /help lists what there is")
            return
        self.commands[word](rest)

    def ask(self, question: str) -> None:
        """Ask all models, and keep their answers. Raises TooLong or Dropped before anything is kept."""
        turns = [conversation.ask(question, self.attempts) for conversation in self.conversations]
        for conversation, turn in zip(self.conversations, turns, strict=True):
            if len(turns) > 1:
                self.output.print(Text(f"[{conversation.model.policy.name}]", style="bold cyan"))
            self.show(turn.answer, conversation)
            conversation.keep(turn)
        self.write_transcript()

    def show(self, answer: Answer, conversation: Conversation) -> None:
        """Print an answer while it is written; Ctrl-C stops it, and what there is of it is kept."""
        if answer.dropped:
            read = f"its {conversation.model.positions} positions do not hold them and an answer"
            self.note(
                f"({conversation.model.policy.name} no longer reads the first {plural(answer.dropped, 'turn')}: {read})"
            )
        is_stopped = False
        try:
            for piece in answer:
                self.output.file.write(make_printable(piece) if self.output.is_terminal else piece)
                self.output.file.flush()
        except KeyboardInterrupt:
            is_stopped = True
        self.output.print()
        if is_stopped:
            self.note("(stopped)")
        elif not answer.ended:
            most = "rollout.max_new_tokens" if answer.limit == conversation.rollout.max_new_tokens else "room for"
            self.note(f"(cut at {answer.limit} tokens: {most})")

    def note(self, text: str) -> None:
        """Print what is no answer."""
        self.notes.print(Text(text, style="dim"))

    def set_system(self, text: str) -> None:
        """Set or remove the system message."""
        for conversation in self.conversations:
            conversation.system = text or None
        self.note("(the system message is set)" if text else "(there is no system message)")

    def clear(self, rest: str) -> None:
        """Begin a new conversation."""
        for conversation in self.conversations:
            conversation.clear()
        self.note("(a new conversation)")

    def undo(self, rest: str) -> None:
        """Take back the last question and its answers."""
        if self.take_back() is not None:
            self.note("(taken back)")
            self.write_transcript()

    def take_back(self) -> Turn | None:
        """Remove the last turn of each conversation, and return one of them; None where there is none."""
        if not self.conversations[0].turns:
            self.note("(nothing was asked yet)")
            return None
        taken, *_ = [conversation.turns.pop() for conversation in self.conversations]
        return taken

    def retry(self, rest: str) -> None:
        """Answer the last question again."""
        if (turn := self.take_back()) is not None:
            self.attempts += 1
            self.ask(turn.prompt[-1].content)

    def score(self, rest: str) -> None:
        """Print the rewards of the last answers, and note them in their records."""
        if not self.conversations[0].turns:
            self.note("(nothing was asked yet)")
            return
        for conversation in self.conversations:
            found = self.add_scores(conversation.turns[-1])
            text = ", ".join(f"{name} {value:.3f}" for name, value in found.items()) or "no reward applies"
            self.output.print(f"{conversation.model.policy.name}: {text}")
        self.write_transcript()

    def add_scores(self, turn: Turn) -> dict[str, float]:
        """Score an answer, and note the scores in its record."""
        self.scorer = self.scorer or self.build_scorer()
        found = self.scorer(turn.prompt, turn.answer.text, turn.answer.ended)
        turn.record["scores"] = found
        return found

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of all answers that stand, in the order in which they were given."""
        by_model = [[*c.cleared, *c.turns] for c in self.conversations]
        return [turn.record for turns in zip(*by_model, strict=True) for turn in turns]

    def save(self, name: str) -> None:
        """Write the records to a file, of that name or the transcript's."""
        path = Path(name).expanduser() if name else self.transcript
        if path is None:
            self.note("(say where, as /save FILE.jsonl)")
            return
        self.write(path)
        self.note(f"({plural(len(self.records), 'record')} in {path})")

    def write_transcript(self) -> None:
        """Write the transcript, if there is one."""
        if self.transcript is not None:
            self.write(self.transcript)

    def write(self, path: Path) -> None:
        """Write the records to a file. Raises ConfigError where that fails."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records))
        except OSError as error:
            raise ConfigError("--transcript", path, f"it cannot be written ({error.strerror})", "give another") from error


def read_terminal() -> Iterable[str]:
    """Yield the lines that are typed, with history and editing where the terminal has them; Ctrl-C empties a line."""
    import readline  # which `input` then uses

    readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D ends)", file=sys.stderr)
