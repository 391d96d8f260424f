"""Stopping a stage: a signal sets a flag; the stage saves at its next boundary and leaves."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The exit code of a worker that has saved a checkpoint because it was asked to stop.
EXIT_CHECKPOINTED = 85
# The exit code of a worker whose stage another process has taken over.
EXIT_LOCK_LOST = 86
stop_requested = threading.Event()  # save and leave
abort_requested = threading.Event()  # leave
received_signals: set[int] = set()  # the signals that asked for it


class Stopped(Exception):
    """A stage was asked to stop. It can be resumed; the message says from where. `state` is the stage's state then."""

    state = "stopped"


class Pruned(Stopped):
    """A search has given the stage up early (rlhf/cli/pruning.py)."""

    state = "pruned"


@contextmanager
def listening(*numbers: int) -> Iterator[threading.Event]:
    """Yield a flag that these signals set; a second Ctrl-C raises KeyboardInterrupt at once.

    A hangup (SIGHUP: the terminal or its ssh connection has gone) that is ignored stays ignored, as with nohup; else what
    is printed from then on goes nowhere, lest writing to the terminal fails before the stage has saved.
    """
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def ask(number: int, frame: FrameType | None) -> None:
        if stop_requested.is_set() and number == signal.SIGINT:
            abort_requested.set()
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            silence(terminals)
        received_signals.add(number)
        stop_requested.set()

    received_signals.clear()
    stop_requested.clear()
    abort_requested.clear()
    numbers = tuple(n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def silence(terminals: list[int]) -> None:
    """Redirect these file descriptors to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
