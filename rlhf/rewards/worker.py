"""The process in which a reward function runs: `python -m rlhf.rewards.worker FD`, FD a socket to the process that asks. No
torch, so that it starts in a moment, and a function that hangs or breaks takes no training down with it."""

import asyncio
import importlib
import importlib.util
import inspect
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf.rewards.functions import FUNCTIONS
from rlhf.rewards.sample import Span, SpannedScore


class ScoreError(Exception):
    """A score that cannot be had: why, and of which sample of the batch, if it is known."""

    def __init__(self, problem: str, index: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.index = problem, index


def load_function(path: str) -> Callable[..., Any]:
    """Return a reward function: a built-in one by its name, or `module:name`, or `file.py:name`."""
    if ":" not in path:
        return FUNCTIONS[path]
    origin, _, name = path.rpartition(":")
    if not origin.endswith(".py"):
        found = getattr(importlib.import_module(origin), name)
    else:
        spec = importlib.util.spec_from_file_location("rlhf_reward", Path(origin).expanduser())
        assert spec is not None and spec.loader is not None  # of a name that ends with .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        found = getattr(module, name)
    if not callable(found):
        raise TypeError(f"{name} is no function")
    function: Callable[..., Any] = found
    return function


def score_batch(
    function: Callable[..., Any], batch: Sequence[Sequence[Any]], options: dict[str, Any]
) -> list[float | None]:
    """Return a function's scores of prompts, responses and records. Raises ScoreError, naming the sample at fault if there
    is one: where a batch fails, each sample is tried by itself."""
    prompts, responses, records = batch
    try:
        return call(function, prompts, responses, records, options)
    except Exception as error:
        if isinstance(error, ScoreError) and error.index is not None:
            raise
        for index, (prompt, response, record) in enumerate(zip(prompts, responses, records, strict=True)):
            try:
                call(function, [prompt], [response], [record], options)
            except Exception as alone:
                raise ScoreError(describe(alone), index) from error
        raise ScoreError(describe(error)) from error


def call(
    function: Callable[..., Any], prompts: Sequence[Any], responses: Sequence[Any], records: Sequence[Any],
    options: dict[str, Any],
) -> list[float | None]:  # fmt: skip
    """Call a function, wait for it if it is asynchronous, and check what it returns."""
    found = function(list(prompts), list(responses), list(records), **options)
    if inspect.isawaitable(found):
        found = asyncio.run(wait_for(found))
    return check_scores(found, responses)


def check_scores(found: Any, responses: Sequence[Any]) -> list[float | None]:
    """Return the scores of responses. Raises ScoreError for what is no list of as many numbers, scores with spans or
    None."""
    count = len(responses)
    try:
        scores = list(found)
    except TypeError as error:
        raise ScoreError(f"it returns {type(found).__name__}, not a list of scores") from error
    if len(scores) != count:
        raise ScoreError(f"it returns {len(scores)} scores for {count} responses")
    return [
        None if score is None else read_score(score, response, index)
        for index, (score, response) in enumerate(zip(scores, responses, strict=True))
    ]


def read_score(score: Any, response: str, index: int) -> float:
    """Return a number, or {"score": number, "spans": [(start, end, value), ...]} as a score whose sum they are. Raises
    ScoreError for anything else, as for a span that does not lie in the response."""
    if not isinstance(score, Mapping):
        return to_number(score, index)
    if unknown := set(score) - {"score", "spans"}:
        raise ScoreError(f"its score has {', '.join(sorted(map(str, unknown)))} beside score and spans", index)
    rest, spans = to_number(score.get("score", 0.0), index), list[Span]()
    for span in score.get("spans") or ():
        try:
            start, end, value = span
        except (TypeError, ValueError) as error:
            raise ScoreError(f"its span is {span!r}, not (start, end, value)", index) from error
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(response)):
            raise ScoreError(f"its span {start!r} to {end!r} is no part of {len(response)} characters", index)
        spans.append((end, to_number(value, index)))
    return SpannedScore(rest + math.fsum(value for _, value in spans), spans)


async def wait_for(found: Any) -> Any:
    """Wait for what an asynchronous function returns."""
    return await found


def to_number(score: Any, index: int) -> float:
    """Return a score as a float. Raises ScoreError for what is no finite number."""
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"its score is {score!r}, no number", index) from error
    if isinstance(score, str) or not math.isfinite(number):
        raise ScoreError(f"its score is {score!r}, no finite number", index)
    return number


def describe(error: Exception) -> str:
    """Say what a function raised, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ScoreError) else f"{type(error).__name__}: {text}" if text else type(error).__name__


def end_with(parent: int) -> None:
    """End this process once the one that asks is gone, whatever the function does."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(connection: Connection) -> None:
    """Load the function that is named first, then score batches until the other side closes. Every answer is a pair:
    "ready" or "scores" with what was found, or "error" with the problem and the sample's index."""
    path, options = connection.recv()
    try:
        function = load_function(path)
        inspect.signature(function).bind([], [], [], **options)
        connection.send(("ready", None))
    except Exception as error:
        connection.send(("error", (describe(error), None)))
        return
    while True:
        batch = connection.recv()
        try:
            connection.send(("scores", score_batch(function, batch, options)))
        except ScoreError as error:
            connection.send(("error", (error.problem, error.index)))


def main() -> None:
    """Serve the socket whose number is the first argument. Signals to stop are the asking process's business, which ends
    its step first."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main()
