"""A process whose terminal goes away."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.experiment import stopping

STAGE = """
import signal, sys, time
from rlhf.experiment.stopping import listening, received_signals
with listening(signal.SIGTERM, signal.SIGHUP) as stop_requested:
    print("training", flush=True)
    while not stop_requested.wait(0.01):
        print(".", flush=True)
    print("saving", flush=True)
    open(sys.argv[1], "w").write(str(sorted(received_signals)))
"""


def start(tmp_path):
    """A stage on a terminal of its own, and the other end of the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", STAGE, str(tmp_path / "saved")]
    root = Path(stopping.__file__).parents[2]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=root, start_new_session=True)
    os.close(theirs)
    assert b"training" in os.read(ours, 8)
    return process, ours


def test_a_stage_whose_terminal_has_gone_saves_though_it_cannot_print(tmp_path):
    process, terminal = start(tmp_path)
    process.send_signal(signal.SIGHUP)
    os.close(terminal)
    assert process.wait(10) == 0
    assert (tmp_path / "saved").read_text() == str([int(signal.SIGHUP)])


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listening(signal.SIGTERM, signal.SIGHUP) as stop_requested:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop_requested.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested.wait(5) and stopping.received_signals == {signal.SIGTERM}
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_asks_to_stop(number):
    with stopping.listening(signal.SIGTERM, signal.SIGHUP) as stop_requested:
        os.kill(os.getpid(), number)
        assert stop_requested.wait(5) and stopping.received_signals == {number}
