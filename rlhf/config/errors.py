"""The one error that a user's input raises, and how several are told at once."""

from collections.abc import Iterable
from typing import Any

from rlhf.config.secrets import mask
from rlhf.config.terminal import one_line

# Characters of a key and its value that a message shows.
LONGEST = 240


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class ConfigError(Exception):
    """Input that cannot work: which key, which value, why, and what to do instead, in one line, without secrets."""

    def __init__(self, key: str, value: Any, problem: str, fix: str) -> None:
        given = mask(f"{key}={value}")
        super().__init__(one_line(f"{shorten(given)}: {mask(problem)}; {mask(fix)}"))
        self.key, self.value, self.problem, self.fix = key, value, problem, fix

    @property
    def problems(self) -> "list[ConfigError]":
        """This problem, as a list."""
        return [self]


class ConfigErrors(ConfigError):
    """Several problems of one configuration, a line each."""

    def __init__(self, problems: list[ConfigError]) -> None:
        Exception.__init__(self, "\n".join(dict.fromkeys(map(str, problems))))
        self.key, self._problems = problems[0].key, problems

    @property
    def problems(self) -> list[ConfigError]:
        """The problems, in the order they were found."""
        return self._problems


def shorten(text: str) -> str:
    """Return a text without its middle, where it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 4 :]}"


def raise_problems(problems: Iterable[ConfigError]) -> None:
    """Raise all problems as one ConfigError, if there are any."""
    found = [problem for error in problems for problem in error.problems]
    if found:
        raise found[0] if len(set(map(str, found))) == 1 else ConfigErrors(found)
