"""Mixtures of data sets, and the shares of a data set that stages have for themselves.

What is taken depends on the seed, the keys and the records alone: it is the same on all ranks, and after a resume.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.catalog.stage import SetCounts
from rlhf.config.schema import Data
from rlhf.config.sources import Source
from rlhf.data.dataset import KINDS, Record, Responses, Split


@dataclass(frozen=True)
class Part:
    """The training or the held-out part of a set.

    Attributes:
        source: The set.
        part: `train` or `heldout`.
        records: Its records.
        columns: The columns of all its rows.
        shape: The name of the shape that the rows were read in, with the columns that show it.
        rows: How many rows are the part's.
        left_out: How many of them hold no record, by the reason.
    """

    source: Source
    part: str
    records: list[Record] = field(default_factory=list)
    columns: Sequence[str] = ()
    shape: str = ""
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def group_records(rows: Sequence[Sequence[Record]]) -> list[list[int]]:
    """Group the numbers of rows, each of which holds some records, by how the conversations begin: up to the first message
    of the user. So no prompt, and no tree of messages, is on both sides of a cut. Groups are in the order of their first
    rows; a row without a record is a group of its own."""
    groups: dict[object, list[int]] = {}
    for number, records in enumerate(rows):
        groups.setdefault(find_opening(records[0]) if records else number, []).append(number)
    return list(groups.values())


def find_opening(record: Record) -> object:
    """Return how the conversation of a record begins: its prompt, or the messages up to the first of the user."""
    if isinstance(record.prompt, str):
        return record.prompt
    roles = [message.role for message in record.prompt]
    opening = record.prompt[: roles.index("user") + 1 if "user" in roles else None]
    return opening[0].content if len(opening) == 1 else opening


def count_taken(available: Sequence[int], sources: Sequence[Source], stopping_strategy: str) -> list[int]:
    """Return how many records are taken of each set that has so many `available`.

    All of them where the sets have neither weights nor numbers. By weights w_i the sets with n_i > 0 records end together
    with the one that is exhausted first, of the smallest n_i / w_i, or last, of the largest: each gives w_i times this
    quotient, rounded.
    """
    numbers = [source.records for source in sources]
    weights = [source.weight for source in sources]
    if any(number is not None for number in numbers):
        return [number or 0 if count else 0 for number, count in zip(numbers, available, strict=True)]
    quotients = [count / weight for count, weight in zip(available, weights, strict=True) if count and weight is not None]
    if not quotients:
        return list(available)
    end = min(quotients) if stopping_strategy == "first_exhausted" else max(quotients)
    return [round((weight or 0) * end) if count else 0 for count, weight in zip(available, weights, strict=True)]


def draw(available: int, taken: int, seed: int, number: int) -> list[int]:
    """Return the places of the records that are taken of the set of this number, in ascending order: all of them as often
    as they are taken whole, and of the rest a sample, in which none is twice."""
    from rlhf.runtime.seeds import random_stream  # which imports numpy

    whole, rest = divmod(taken, available) if available else (0, 0)
    drawn = random_stream(seed, "mixture", number).permutation(available)[:rest].tolist() if rest else []
    return [*(list(range(available)) * whole), *sorted(drawn)]


def interleave(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (list, place) for all items of lists of these lengths, such that each list is spread evenly: the first items
    of all are a mixture as all of them are."""
    order = [((place + 0.5) / length, number, place) for number, length in enumerate(lengths) for place in range(length)]
    return [(number, place) for _, number, place in sorted(order)]


def mix(parts: Sequence[Part], entries: Sequence[Sequence[Split]], data: Data, seed: int, is_training: bool) -> Split:
    """Mix the parts of several sets. Each kind of record (demonstrations, pairs, prompts) is mixed by itself, among the
    sets that have some, since each stage reads one kind.

    Args:
        parts: The part of each set.
        entries: What each record of a part gives to the stages, record by record.
        data: The keys of the mixture.
        seed: Decides which records are taken where not all are.
        is_training: Whether weights and numbers hold; held-out records are all kept.
    """
    sources = [part.source for part in parts]
    left_out = sum((part.left_out for part in parts), Counter[str]())
    holds = {
        "demonstrations": [[entry for entry in held if entry.demonstrations] for held in entries],
        "comparisons": [[entry for entry in held if entry.comparisons] for held in entries],
        "labelled": [[entry for entry in held if entry.labelled] for held in entries],
        "prompts": first_of_each_prompt(entries),
    }
    chosen: dict[str, list[Split]] = {}
    counts: dict[str, list[tuple[int, int]]] = {}
    for kind in KINDS:
        available = [len(held) for held in holds[kind]]
        taken = count_taken(available, sources, data.stopping_strategy) if is_training else available
        drawn = [
            draw(count, wanted, seed, number) for number, (count, wanted) in enumerate(zip(available, taken, strict=True))
        ]
        lengths = [len(places) for places in drawn]
        chosen[kind] = [holds[kind][number][drawn[number][place]] for number, place in interleave(lengths)]
        counts[kind] = list(zip(available, lengths, strict=True))
    sets = {
        part.source.name: SetCounts(
            part.rows, part.shape, dict(part.left_out),
            *({kind: counts[kind][number][which] for kind in KINDS} for which in (0, 1)),
        )
        for number, part in enumerate(parts)
    }  # fmt: skip
    unread = {kind: sum(map(len, entries)) - sum(map(len, holds[kind])) for kind in KINDS}
    meta: dict[Any, Mapping[str, Any]] = {}
    for entry in (entry for kind in reversed(KINDS) for entry in chosen[kind]):
        for prompt, known in entry.meta.items():
            meta.setdefault(prompt, known)
    return Split(
        [demonstration for entry in chosen["demonstrations"] for demonstration in entry.demonstrations],
        [comparison for entry in chosen["comparisons"] for comparison in entry.comparisons],
        [prompt for entry in chosen["prompts"] for prompt in entry.prompts],
        Responses(
            [pair for entry in chosen["labelled"] for pair in entry.labelled.pairs],
            [response for entry in chosen["labelled"] for response in entry.labelled.alone],
        ),
        dict(left_out), meta, "mixture", sum(part.rows for part in parts), unread, sets,
    )  # fmt: skip


def first_of_each_prompt(entries: Sequence[Sequence[Split]]) -> list[list[Split]]:
    """Return the entries of each set whose prompt no entry before them has, those of other sets included."""
    seen: set[object] = set()
    found: list[list[Split]] = []
    for held in entries:
        found.append([])
        for entry in held:
            fresh = [prompt for prompt in entry.prompts if prompt not in seen]
            seen.update(fresh)
            if fresh:
                found[-1].append(entry)
    return found
