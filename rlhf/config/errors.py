"""The one error that a user's input raises, and how several are told at once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf.config.secrets import mask
from rlhf.config.terminal import one_line

# Characters of a key and its value that a message shows.
LONGEST = 240
# So many points with one and the same problem are told in one line.
FEW_POINTS = 5


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


class Invalid(ConfigErrors):
    """Points that cannot work, each with the reason, a line each; a reason that many have alike is told once.

    Args:
        problems: What is wrong, with the name of its point.
        points: How many points the command has: the name of a single one is not told.
    """

    def __init__(self, problems: Sequence[tuple[str, ConfigError]], points: int) -> None:
        super().__init__([problem for _, error in problems for problem in error.problems])
        # Two stages of a point may have the same problem, which is one.
        single = dict.fromkeys((name, str(problem)) for name, error in problems for problem in error.problems)
        counts = Counter(problem for _, problem in single)
        lines, told = [], set()
        for name, problem in single:
            alike = counts[problem]
            if alike > FEW_POINTS and problem in told:
                continue
            told.add(problem)
            others = f" and {alike - 1} more points" if alike > FEW_POINTS else ""
            lines += [f"{name}{others}: {problem}" if points > 1 else problem]
        self.args = ("\n".join(dict.fromkeys(lines)),)


def shorten(text: str) -> str:
    """Return a text without its middle, where it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 4 :]}"


def raise_problems(problems: Iterable[ConfigError]) -> None:
    """Raise all problems as one ConfigError, if there are any."""
    found = [problem for error in problems for problem in error.problems]
    if found:
        raise found[0] if len(set(map(str, found))) == 1 else ConfigErrors(found)
