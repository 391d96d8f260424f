"""Scores by a service: a batch is posted as JSON, and its scores come back (rlhf/rewards/service.py is such a service)."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import RewardTerm
from rlhf.rewards.sample import Sample
from rlhf.rewards.worker import ScoreError, check_scores

# Seconds before the first new attempt; each later one waits twice as long.
FIRST_WAIT_S = 0.5


class HttpReward:
    """Asks a service for scores: POST {"prompts": [...], "responses": [...], "records": [...], "ended": [...]} is answered
    by {"scores": [...]}, each a number, null, or {"score": ..., "spans": [[start, end, value], ...]}.

    Args:
        key: The key of the configuration that holds the address, for errors.
        term: The reward: the address, its time limit, and how often a request is tried again.
    """

    def __init__(self, key: str, term: RewardTerm) -> None:
        self.key, self.url, self.timeout_s, self.retries = key, str(term.url), term.timeout_s, term.retries
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.found: Future[list[float | None]] | None = None

    def ask(self, samples: Sequence[Sample]) -> None:
        """Begin to score samples."""
        self.found = self.thread.submit(self.post, samples) if samples else None

    def answer(self) -> list[float | None]:
        """Wait for the scores of the samples. Raises ConfigError where the service gives none."""
        return [] if self.found is None else self.found.result()

    def post(self, samples: Sequence[Sample]) -> list[float | None]:
        """Post samples, again where the service cannot be reached, is busy or breaks."""
        names = {"prompts": "prompt", "responses": "response", "records": "record", "ended": "ended"}
        body = json.dumps({name: [getattr(s, field) for s in samples] for name, field in names.items()}, default=str)
        request = urllib.request.Request(self.url, body.encode(), {"Content-Type": "application/json"})
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                    return self.read(reply.read(), samples)
            except urllib.error.HTTPError as error:
                problem = f"it answers {error.code}: {read_problem(error)}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, HTTPException, ValueError) as error:  # URLError and time-outs are OSErrors
                problem = str(getattr(error, "reason", None) or error)
        tried = f"{self.retries + 1} attempts of {self.timeout_s:g} s at most"
        fix = "start it, as `python -m rlhf serve-reward DIR`, or give the address of one that runs"
        raise ConfigError(self.key, self.url, f"the service gives no scores in {tried} ({problem})", fix)

    def read(self, content: bytes, samples: Sequence[Sample]) -> list[float | None]:
        """Read the scores of samples from a reply. Raises ValueError for one that holds none."""
        try:
            return check_scores(json.loads(content)["scores"], [sample.response for sample in samples])
        except (ScoreError, KeyError, TypeError) as error:
            raise ValueError(f"its reply holds no scores: {error}") from error

    def close(self) -> None:
        """Wait for no further answer."""
        self.thread.shutdown(wait=False, cancel_futures=True)


def read_problem(error: urllib.error.HTTPError) -> Any:
    """Return what a service says of a request that it refuses."""
    try:
        return json.loads(error.read())["error"]
    except (ValueError, KeyError, TypeError):
        return error.reason
