"""Records as token ids."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from rlhf.data.cells import Dropped
from rlhf.data.dataset import Comparison, Demonstration, Prompt
from rlhf.data.encoded import Encoded
from rlhf.data.templates import ShortPrompt, Template


def shorten_prompt(prompt: Prompt, template: Template) -> ShortPrompt | None:
    """Return a prompt's ids, shortened to data.max_prompt_tokens; None where it does not fit or has no text."""
    try:
        return template.shorten(prompt)
    except Dropped:
        return None


def encode_demonstrations(records: Sequence[Demonstration], template: Template) -> list[Encoded]:
    """Return demonstrations as ids, without those whose prompt does not fit or has no text."""
    return [item for record in records for item in encode_answers(record.prompt, [record.response], template)]


def encode_answers(prompt: Prompt, responses: Sequence[str], template: Template) -> list[Encoded]:
    """Return the responses to a prompt as ids; none at all where the prompt does not fit or one of them has no text."""
    short = shorten_prompt(prompt, template)
    try:
        return [] if short is None else [template.encode_answer(short, response) for response in responses]
    except Dropped:
        return []


def encode_whole(records: Sequence[Demonstration], template: Template) -> list[list[int]]:
    """Return demonstrations as ids, neither shortened nor cut, without those that have no text."""
    found: list[list[int]] = []
    for record in records:
        with suppress(Dropped):
            found.append(template.encode_whole(record.prompt, record.response))
    return found


def encode_comparisons(
    records: Sequence[Comparison], template: Template, grouped: bool
) -> list[list[tuple[Encoded, Encoded]]]:
    """Return comparison elements: each pair by itself, or all pairs of a prompt together if `grouped`."""
    groups: dict[Prompt | int, list[tuple[Encoded, Encoded]]] = {}
    for number, pair in encode_pairs(records, template):
        groups.setdefault(records[number].prompt if grouped else number, []).append(pair)
    return list(groups.values())


def encode_pairs(records: Sequence[Comparison], template: Template) -> Iterator[tuple[int, tuple[Encoded, Encoded]]]:
    """Yield the number of each comparison whose prompt fits, with its two responses as ids."""
    for number, record in enumerate(records):
        if pair := encode_answers(record.prompt, [record.chosen, record.rejected], template):
            yield number, (pair[0], pair[1])
