"""The text of an answer while it grows."""

from collections.abc import Callable, Sequence

# Text of token ids.
Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Turns tokens into text that can be shown at once: what was shown never changes.

    Whatever a later token may still change is held back: bytes of a character that is not whole, blanks at the end, and
    what may become the text that the template puts around an answer. The pieces together are the text of all tokens.

    Args:
        decode: Returns the text of all tokens of an answer.
        lead: The text that `decode` takes off the beginning of an answer.
        tail: The text that it takes off the end.
    """

    def __init__(self, decode: Decode, lead: str = "", tail: str = "") -> None:
        self.decode, self.lead, self.tail = decode, lead, tail
        self.tokens, self.shown = list[int](), ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is new and certain, perhaps none."""
        self.tokens.append(token)
        text = hold_back(self.decode(self.tokens), self.lead, self.tail)
        return self.show(text) if text.startswith(self.shown) else ""

    def finish(self) -> str:
        """Return the rest of the text."""
        return self.show(self.decode(self.tokens))

    def show(self, text: str) -> str:
        """Return what a text has beyond what was shown."""
        same = next((n for n in range(len(self.shown), 0, -1) if text.startswith(self.shown[:n])), 0)
        self.shown = text
        return text[same:]


def hold_back(text: str, lead: str, tail: str) -> str:
    """Return the part of an answer's text that no later token changes; `lead` and `tail` are taken off an answer."""
    if lead.startswith(text):
        return ""
    text = text.rstrip("\ufffd").rstrip()
    return text[: len(text) - longest_overlap(text, tail)].rstrip()


def longest_overlap(text: str, other: str) -> int:
    """Return how many characters at the end of a text are the beginning of another."""
    return next((size for size in range(min(len(text), len(other)), 0, -1) if text.endswith(other[:size])), 0)


class StopCutter:
    """Cuts a text that comes in pieces before the first of some texts, as OpenAI's `stop` does.

    Args:
        stops: The texts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.has_stopped = [stop for stop in stops if stop], "", False

    def push(self, piece: str) -> str:
        """Add a piece; returns what is certain to stand before the first stop."""
        self.held += piece
        found = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if found:
            self.has_stopped = True
            certain, self.held = self.held[: min(found)], ""
            return certain
        keep = max((longest_overlap(self.held, stop) for stop in self.stops), default=0)
        certain, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return certain

    def finish(self) -> str:
        """Return what was held back, if no stop has come."""
        return "" if self.has_stopped else self.held
