"""Scores by a Python function, which runs in a process of its own with a time limit."""

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import RewardTerm
from rlhf.config.terminal import one_line
from rlhf.rewards.sample import Sample

# Seconds that importing a function may take.
LOAD_TIMEOUT_S = 120.0
SHOWN = 60


class FunctionReward:
    """Asks a function for scores. Its process starts with the first question, or with `load`, and ends with `close`.

    Args:
        key: The key of the configuration that names the function, for errors.
        term: The reward: its function, its options and its time limit.
    """

    def __init__(self, key: str, term: RewardTerm) -> None:
        self.key, self.path, self.timeout_s = key, str(term.function), term.timeout_s
        self.options = dict(term.options or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection[Any, Any] | None = None
        self.samples: Sequence[Sample] = ()
        self.problem: ConfigError | None = None

    def load(self) -> None:
        """Start the process and import the function. Raises ConfigError where that fails."""
        ours, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        command = [sys.executable, "-m", "rlhf.rewards.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self.connection = ours
        ours.send((self.path, self.options))
        self.receive(LOAD_TIMEOUT_S, "it cannot be imported")

    def ask(self, samples: Sequence[Sample]) -> None:
        """Begin to score samples. What is wrong is raised by `answer`."""
        try:
            if self.connection is None:
                self.load()
            self.samples = samples
            if samples and self.connection is not None:
                self.connection.send([[getattr(s, name) for s in samples] for name in ("prompt", "response", "record")])
        except ConfigError as error:
            self.problem = error
        except ConnectionError:
            self.problem = self.fail("its process ended", "correct the function")

    def answer(self) -> list[float | None]:
        """Wait for the scores of the samples. Raises ConfigError where the function fails or takes too long."""
        if self.problem is not None:
            raise self.problem
        if not self.samples:
            return []
        scores: list[float | None] = self.receive(self.timeout_s, "it fails")
        return scores

    def receive(self, seconds: float, told: str) -> Any:
        """Return what the process answers. Raises ConfigError, after which the process is gone."""
        assert self.connection is not None
        try:
            if not self.connection.poll(seconds):
                limit = f"it took longer than {seconds:g} s for {len(self.samples)} responses"
                raise self.fail(
                    limit, f"raise {self.key.rpartition('.')[0] or 'rewards.NAME'}.timeout_s, or make it faster"
                )
            state, found = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            code = None if self.process is None else self.process.wait()
            raise self.fail(f"its process ended with exit code {code}", "correct the function") from error
        if state != "error":
            return found
        problem, place = found
        raise self.fail(f"{told}{self.name_sample(place)} ({problem})", "correct the function")

    def name_sample(self, place: int | None) -> str:
        """Say which sample a problem is of."""
        if place is None:
            return ""
        sample = self.samples[place]
        prompt, response = (one_line(str(text))[:SHOWN] for text in (sample.prompt, sample.response))
        return f' on sample {place}, prompt "{prompt}", response "{response}"'

    def fail(self, problem: str, fix: str) -> ConfigError:
        """Return the error of a function that cannot go on; ends its process."""
        self.close()
        return ConfigError(self.key, self.path, problem, fix)

    def close(self) -> None:
        """End the process."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.connection = self.process = None
