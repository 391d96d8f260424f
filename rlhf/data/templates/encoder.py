"""From parts of a text to token ids.

A tokenizer encodes a whole text; here a text comes in parts, since a rollout begins where the prompt ends, and since a
special token that is written out in a record is text, not that token. What this file makes of the parts is what the
tokenizer makes of the whole text, wherever the tokenizer has a border between tokens there.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

from rlhf.data.cells import Dropped
from rlhf.data.encoded import Tokenizer

# Texts before which tokenizers have a border, to encode what follows as the middle of a text.
ANCHORS = ("\n", ":", "0", "a")
# Words by which a tokenizer shows whether it begins a text as it begins a word in the middle of one.
WORDS = ("a", "the", "Why")


@dataclass(frozen=True)
class Part:
    """A stretch of text.

    Attributes:
        text: The text.
        written: Whether it stands in a record; else it is the template's, and special tokens in it are special tokens.
        said: Whether the assistant said it, and ends its turn with it.
    """

    text: str
    written: bool = False
    said: bool = False


# What stands before a text: None at its beginning, "" after a special token, else the last text.
Context = str | None


@dataclass(frozen=True)
class EncodedParts:
    """Token ids of parts, whether the assistant said each token, and what a text that follows would follow."""

    ids: list[int]
    said: list[int]
    context: Context


def join_parts(parts: Iterable[Part]) -> str:
    """Return the text of parts."""
    return "".join(part.text for part in parts)


class TextEncoder:
    """Encodes texts in parts; `end` is a token that is a special one, whatever the tokenizer says of it.

    Attributes:
        prefix: The special tokens that the tokenizer puts before a text.
    """

    def __init__(self, tokenizer: Tokenizer, end: str = "") -> None:
        self.tokenizer, added = tokenizer, tokenizer.added_tokens_decoder
        self.special: dict[str, Any] = {str(token): token for token in added.values() if token.special or str(token) == end}
        self.number: dict[str, int] = {str(token): number for number, token in added.items()}
        self.pattern = match_any(self.special)
        self.seen: re.Pattern[str] | None = None
        self.seen = match_any(text for text in self.special if self.encode_text(text) == [self.number[text]])
        self.prefix = find_prefix(tokenizer, self.encode_text("a"))
        self.adds_blank = not any(self.follows(anchor) for anchor in ANCHORS)
        self.adds_blank_again = self.adds_blank and self.restarts()

    def encode(self, parts: Sequence[Part], context: Context = None) -> EncodedParts:
        """Return the ids of parts that follow `context`."""
        ids: list[int] = []
        said: list[int] = []
        for spoken, group in groupby(parts, key=lambda part: part.said):
            for text, token in self.split_special(group):
                if token is None:
                    found = self.follow(text, context)
                    context = text
                else:
                    found, context = [token], ""
                ids += found
                said += [int(spoken)] * len(found)
        return EncodedParts(ids, said, context)

    def holds_special(self, text: str) -> bool:
        """Tell whether the text of a special token is written out in a text."""
        return self.pattern is not None and self.pattern.search(text) is not None

    def read_text(self, text: str) -> EncodedParts:
        """Return the ids of a text that goes on, with the tokens that the tokenizer puts before a text, without any that it
        puts after one."""
        found = self.encode([Part(text, written=True)])
        return EncodedParts(self.prefix + found.ids, [0] * len(self.prefix) + found.said, found.context)

    def last_tokens(self, ids: list[int], count: int) -> list[int]:
        """Return the end of a text that is too long; the special tokens that it begins with stay."""
        special = set(self.tokenizer.all_special_ids)
        start = next((place for place, token in enumerate(ids) if token not in special), 0)
        kept = ids[: min(start, count)]
        return kept + ids[max(start, len(ids) - count + len(kept)) :] if count > len(kept) else kept

    def split_special(self, parts: Iterable[Part]) -> Iterator[tuple[str, int | None]]:
        """Yield the texts between the special tokens of the template, and these tokens with their ids. The blanks that a
        special token takes in around it are left out, as the tokenizer does."""
        text, strip = "", False
        for part in parts:
            pieces = [part.text] if part.written or self.pattern is None else self.pattern.split(part.text)
            for place, piece in enumerate(pieces):
                if place % 2 == 0:
                    text += piece.lstrip() if strip and not text else piece
                    continue
                token = self.special[piece]
                if text := text.rstrip() if token.lstrip else text:
                    yield text, None
                yield piece, self.number[piece]
                text, strip = "", token.rstrip
        if text:
            yield text, None

    def follow(self, text: str, context: Context) -> list[int]:
        """Return the ids of a text as it follows `context`. Raises Dropped where the tokenizer has no border there."""
        if context is None or not self.adds_blank or (context == "" and self.adds_blank_again):
            return self.encode_text(text)
        for anchor in (context[-200:], *ANCHORS):
            head, whole = self.encode_anchor(anchor), self.encode_text(anchor + text)
            if anchor and whole[: len(head)] == head:
                return whole[len(head) :]
        raise Dropped("texts that the tokenizer does not tell from the text before them")

    def encode_anchor(self, anchor: str) -> list[int]:
        """Return the ids of a text that many others follow."""
        return list(encode_cached(self, anchor))

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text by itself, in which no special token is one."""
        pieces = [text]
        if self.seen is not None:  # written out, it is broken after its first character
            pieces = [piece for found in self.seen.split(text) for piece in self.break_special(found) if piece]
        return [token for piece in pieces for token in self.call(piece)]

    def break_special(self, text: str) -> tuple[str, ...]:
        """Break a special token's text, so that the tokenizer does not take it for the token."""
        return (text[:1], text[1:]) if text in self.special else (text,)

    def call(self, text: str) -> list[int]:
        """Return the tokenizer's ids of a text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def follows(self, anchor: str) -> bool:
        """Whether words after this text have the ids that they have by themselves."""
        head = self.encode_text(anchor)
        return all(self.encode_text(anchor + word) == head + self.encode_text(word) for word in WORDS)

    def restarts(self) -> bool:
        """Whether the tokenizer begins again, with a blank of its own, after a special token."""
        token = self.tokenizer.eos_token
        plain = [self.tokenizer(token + word, add_special_tokens=False)["input_ids"] for word in WORDS]
        return all(list(ids)[1:] == self.encode_text(word) for ids, word in zip(plain, WORDS, strict=True))


@lru_cache(maxsize=256)
def encode_cached(encoder: TextEncoder, text: str) -> tuple[int, ...]:
    """Return the ids of a text by itself."""
    return tuple(encoder.encode_text(text))


def match_any(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of these texts, the longest first; None where there is none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def find_prefix(tokenizer: Tokenizer, letter: list[int]) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text; `letter` are the ids of the text "a"."""
    whole = list(tokenizer("a")["input_ids"])
    starts = range(len(whole) - len(letter) + 1)
    return whole[: next((start for start in starts if whole[start : start + len(letter)] == letter), 0)]
