"""The answers of several policies to the same prompts, beside each other: on a terminal, and as lines for scripts. No
torch.

A line has `prompt`, `index`, its number, `sample`, the number among its answers, `meta`, what else its record says, and
`answers`, of each policy by its name: {response, score, gold, length, ended}.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.config.terminal import one_line
from rlhf.evaluation.answers import Row

# What is told of an answer.
TOLD = ("response", "score", "gold", "length", "ended")
# Columns of a terminal for each policy's answers, at least; else they stand below each other.
COLUMN = 48


@dataclass(frozen=True)
class Beside:
    """A prompt with an answer of each policy that has answered it, by the policy's name."""

    prompt: str
    index: int
    sample: int
    meta: Mapping[str, Any]
    answers: dict[str, Row]

    def describe(self) -> Row:
        """Return the line for scripts."""
        answers = {name: {key: row[key] for key in TOLD} for name, row in self.answers.items()}
        return {**vars(self), "answers": answers}


def align_answers(models: Sequence[tuple[str, Sequence[Row]]]) -> Iterator[Beside]:
    """Yield the prompts that any of some policies, by their names, have answered, once for each sample."""
    found: dict[tuple[int, str, int], Beside] = {}
    for name, rows in models:
        counts: dict[int, int] = {}
        for row in rows:
            sample = counts[row["index"]] = counts.get(row["index"], -1) + 1
            key = row["index"], row["prompt"], sample
            beside = found.setdefault(key, Beside(row["prompt"], row["index"], sample, row["meta"], {}))
            beside.answers[name] = row
    yield from (found[key] for key in sorted(found, key=lambda key: (key[0], key[2], key[1])))


def print_answers(answers: Iterator[Beside], console: Console) -> None:
    """Print the first answer of each policy to each prompt under the prompt: in columns where there is room."""
    for beside in answers:
        if beside.sample > 0:
            continue
        console.rule(one_line(beside.prompt), align="left")
        heads = [Text(name_answer(name, row), style="bold") for name, row in beside.answers.items()]
        texts = [Text(row["response"].strip() or "(empty)") for row in beside.answers.values()]
        if console.width >= COLUMN * len(heads):
            table = Table.grid(padding=(0, 2), expand=True)
            for _ in heads:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*heads)
            table.add_row(*texts)
            console.print(table)
            continue
        for head, text in zip(heads, texts, strict=True):
            console.print(head)
            console.print(text, overflow="fold")


def name_answer(name: str, row: Row) -> str:
    """Return the name of a policy with the score of its answer, and whether that was cut."""
    score = "" if row["score"] is None else f" ({row['score']:.2f})"
    return f"{one_line(name)}{score}{'' if row['ended'] else ', cut'}"
