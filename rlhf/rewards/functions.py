"""The built-in reward functions. Each takes prompts, responses and the prompts' records, and options by name; it returns a
float for each response, or None where the record lacks what it needs. No torch."""

import json
import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

Scores = list[float | None]
Records = Sequence[Mapping[str, Any]]


def score_length(prompts: Sequence[Any], responses: Sequence[str], records: Records, target: float | None = None) -> Scores:
    """Count words; with a `target`, minus the distance from it, as a share of it."""
    words = [len(response.split()) for response in responses]
    return [float(count) if target is None else -abs(count - target) / target for count in words]


def score_repetition(prompts: Sequence[Any], responses: Sequence[str], records: Records, n: int = 3) -> Scores:
    """Minus the share of a response's n-grams of words that came before in it: 0 where none is repeated, near -1 where all
    are the same."""
    return [-share_repeated(response.split(), n) for response in responses]


def share_repeated(words: list[str], n: int) -> float:
    """Return the share of n-grams that came before; 0 of a text shorter than n words."""
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def score_format(
    prompts: Sequence[Any], responses: Sequence[str], records: Records, pattern: str, whole: bool = False
) -> Scores:
    """Return 1 where the regular expression `pattern` is found in a response (with `whole`: matches all of it), else 0. A
    dot matches line ends too."""
    compiled = re.compile(pattern, re.DOTALL)
    find = compiled.fullmatch if whole else compiled.search
    return [float(find(response) is not None) for response in responses]


def score_exact_match(
    prompts: Sequence[Any], responses: Sequence[str], records: Records, answer: str = "answer", pattern: str | None = None
) -> Scores:
    """Return 1 where a response is the record's `answer`, blanks at the ends and capitals aside, else 0. With a `pattern`
    its last match, or the match's first group, is what is compared."""
    found = [extract(response, pattern) for response in responses]
    return compare_answers(found, records, answer, lambda text, wanted: text.casefold() == wanted.casefold())


def score_multiple_choice(
    prompts: Sequence[Any], responses: Sequence[str], records: Records, answer: str = "answer", letters: str = "ABCD"
) -> Scores:
    """Return 1 where the last of the `letters` that stands by itself in a response is the record's `answer`, else 0."""
    found = [extract(response, rf"(?<![A-Za-z0-9'])([{re.escape(letters)}])(?![A-Za-z0-9'])") for response in responses]
    return compare_answers(found, records, answer, lambda text, wanted: text.casefold() == wanted.strip("().").casefold())


def score_math(prompts: Sequence[Any], responses: Sequence[str], records: Records, answer: str = "answer") -> Scores:
    r"""Return 1 where math-verify finds a response's final expression, as in \boxed{}, equal to the record's `answer`, else
    0. Of an answer that ends with `#### 42`, as GSM8K's do, only what follows counts."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # the process has a time limit of its own

    def is_equal(text: str, wanted: str) -> bool:
        gold = parse(f"${wanted.rpartition('####')[2].strip()}$", parsing_timeout=None)
        return bool(verify(gold, parse(text, parsing_timeout=None), timeout_seconds=None))

    return compare_answers(list(responses), records, answer, is_equal)


def score_json_schema(
    prompts: Sequence[Any], responses: Sequence[str], records: Records, schema: str | None = None
) -> Scores:
    """Return 1 where a response is JSON that fits a JSON schema: the one in the file `schema`, or the record's `schema`;
    0.5 where it is other JSON, else 0."""
    from jsonschema import validators

    shared = None if schema is None else read_json(schema)
    scores: Scores = []
    for response, record in zip(responses, records, strict=True):
        wanted = shared if shared is not None else record.get("schema")
        if wanted is None:
            scores.append(None)
            continue
        rules = json.loads(wanted) if isinstance(wanted, str) else wanted
        try:
            fits = validators.validator_for(rules)(rules).is_valid(json.loads(response))
            scores.append(1.0 if fits else 0.5)
        except ValueError:
            scores.append(0.0)
    return scores


def score_vader(prompts: Sequence[Any], responses: Sequence[str], records: Records) -> Scores:
    """Return VADER's compound sentiment of each response, from -1 to 1 (Hutto and Gilbert 2014)."""
    analyzer = load_vader()
    return [float(analyzer.polarity_scores(response)["compound"]) for response in responses]


@cache
def load_vader() -> Any:
    """Load VADER's lexicon, once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def score_compression(prompts: Sequence[Any], responses: Sequence[str], records: Records) -> Scores:
    """Return the size of each response after zlib as a share of its size before, at most 1: low where it repeats itself."""
    sizes = [(len(zlib.compress(text)), len(text)) for text in (response.encode() for response in responses)]
    return [min(1.0, packed / size) if size else 1.0 for packed, size in sizes]


def extract(response: str, pattern: str | None) -> str | None:
    """Return the last match of a pattern in a response, or of its first group; without a pattern the response."""
    if pattern is None:
        return response.strip()
    matches = [match[1] if match.re.groups else match[0] for match in re.finditer(pattern, response, re.DOTALL)]
    found = [text for text in matches if text is not None]  # a group may have no part in a match
    return found[-1].strip() if found else None


def compare_answers(
    found: Sequence[str | None], records: Records, answer: str, is_equal: Callable[[str, str], bool]
) -> Scores:
    """Return 1 where what was found in a response equals the record's answer, 0 where not, None where the record has
    none."""
    wanted = [record.get(answer) for record in records]
    return [
        None if right is None else float(text is not None and is_equal(text, str(right).strip()))
        for text, right in zip(found, wanted, strict=True)
    ]


def read_json(path: str) -> Any:
    """Read a file of JSON."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


FUNCTIONS: dict[str, Callable[..., Scores]] = {
    "length": score_length,
    "repetition": score_repetition,
    "compression": score_compression,
    "format": score_format,
    "exact_match": score_exact_match,
    "multiple_choice": score_multiple_choice,
    "math": score_math,
    "json_schema": score_json_schema,
    "vader": score_vader,
}
# The modules that some of them import, with the package that has each (math-verify with the runtime that Hydra needs too).
NEEDED = {
    "math": ("math_verify", "math-verify[antlr4_9_3]"),
    "json_schema": ("jsonschema", "jsonschema"),
    "vader": ("vaderSentiment", "vaderSentiment"),
}
