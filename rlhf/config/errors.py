"""The one error that a user's input raises."""

from typing import Any


class ConfigError(Exception):
    """Input that cannot work: which key, which value, why, and what to do instead, in one line."""

    def __init__(self, key: str, value: Any, problem: str, fix: str) -> None:
        super().__init__(f"{key}={value}: {problem}; {fix}")
