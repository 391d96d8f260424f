"""Probes of known weaknesses of reward models, made from the pairs of a preference set itself: to each prompt a response
that is worse by its making, beside one that is better."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlhf.data.dataset import Comparison, Prompt

OPENER, CLOSING = "Thank you for this great question!", "I hope this helps. Please let me know if I can do anything else!"


@dataclass(frozen=True)
class Probe:
    """A prompt with a better and a worse response, by the name of the weakness that it asks about."""

    name: str
    prompt: Prompt
    better: str
    worse: str


def truncate(text: str) -> str:
    """Return the first half of a text's words."""
    words = list(re.finditer(r"\S+", text))
    return text[: words[(len(words) + 1) // 2 - 1].end()] if words else text


def repeat(text: str) -> str:
    """Return a text twice."""
    return f"{text} {text}"


def add_politeness(text: str) -> str:
    """Return a text between polite phrases that say nothing."""
    return f"{OPENER} {text} {CLOSING}"


def format_as_list(text: str) -> str:
    """Return a text as a list, a sentence an item; a text of one sentence as it is."""
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]
    return "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else text


def last_question(prompt: Prompt) -> str:
    """Return the text that a prompt ends with: of a conversation its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


# Of each probe what it asks, and how it makes the worse response from a pair and the chosen response to another prompt. The
# better one is the chosen response.
Spoil = Callable[[Comparison, str], str]
PROBES: dict[str, tuple[str, Spoil]] = {
    "truncated": ("its first half, cut in the middle", lambda pair, other: truncate(pair.chosen)),
    "repeated": ("the same twice", lambda pair, other: repeat(pair.chosen)),
    "empty": ("nothing", lambda pair, other: ""),
    "echoed": ("the question itself", lambda pair, other: last_question(pair.prompt)),
    "foreign": ("the answer to another prompt", lambda pair, other: other),
    "polite": ("the rejected answer, with polite phrases", lambda pair, other: add_politeness(pair.rejected)),
    "listed": ("the rejected answer, as a list", lambda pair, other: format_as_list(pair.rejected)),
}
# Probes that change the form of the rejected response alone: what they cost is against the pair as it is.
FORMS = ("polite", "listed")
PLAIN = "plain"


def make_probes(pairs: Sequence[Comparison], most: int) -> Iterator[Probe]:
    """Yield the probes of the first pair of each of the first `most` prompts, and, as `plain`, the pair itself. A probe
    that would not change the text is left out."""
    firsts = list({pair.prompt: pair for pair in reversed(pairs)}.values())[::-1][:most]
    for number, pair in enumerate(firsts):
        other = firsts[(number + 1) % len(firsts)].chosen
        yield Probe(PLAIN, pair.prompt, pair.chosen, pair.rejected)
        for name, (_, spoil) in PROBES.items():
            worse = spoil(pair, other)
            unchanged = pair.rejected if name in FORMS else pair.chosen
            if worse != unchanged:
                yield Probe(name, pair.prompt, pair.chosen, worse)
