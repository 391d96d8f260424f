"""The one error that a user's input raises."""

from typing import Any

from rlhf.config.secrets import mask
from rlhf.config.terminal import one_line


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class ConfigError(Exception):
    """Input that cannot work: which key, which value, why, and what to do instead, in one line, without secrets."""

    def __init__(self, key: str, value: Any, problem: str, fix: str) -> None:
        super().__init__(one_line(mask(f"{key}={value}: {problem}; {fix}")))
