"""Being asked to stop: a signal sets a flag, and the stage saves at its next boundary and leaves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The exit code of a worker that saved because it was asked to stop.
SAVED = 85
# The exit code of a worker whose stage another process has taken over.
TAKEN_OVER = 86
asked = threading.Event()  # save and leave
aborted = threading.Event()  # leave
received: set[int] = set()  # the signals that asked


class Stopped(Exception):
    """A stage that was asked to stop and can be resumed; the message says where it stands."""


@contextmanager
def listening(*numbers: int) -> Iterator[threading.Event]:
    """A context in which these signals set the flag it gives; a second Ctrl-C raises KeyboardInterrupt at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            aborted.set()
            raise KeyboardInterrupt
        received.add(number)
        asked.set()

    received.clear()
    asked.clear()
    aborted.clear()
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
