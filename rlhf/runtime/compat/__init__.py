"""Every private name of DeepSpeed, transformers and torch that this package uses, each behind a verb that says its purpose.

A release of these libraries may rename or drop such a name, so a new release is tried here first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module or an object another value inside the context."""
    is_own, former = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, former)
        else:
            delattr(owner, name)
