"""Being asked to stop: a signal sets a flag, and the stage saves at its next boundary and leaves."""

import os
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
    """A context in which these signals set the flag it gives; a second Ctrl-C raises KeyboardInterrupt at once.

    A hangup (SIGHUP: the terminal or its ssh connection has gone) that is ignored stays ignored, as with nohup; else what
    is printed from then on goes nowhere, lest writing to the terminal fails before the stage has saved.
    """
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            aborted.set()
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            silence(terminals)
        received.add(number)
        asked.set()

    received.clear()
    asked.clear()
    aborted.clear()
    numbers = tuple(n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def silence(terminals: list[int]) -> None:
    """Have these file descriptors lead nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
