"""A language model as a judge of two answers, behind an OpenAI-compatible endpoint. No torch.

Each two answers are judged in both orders. A reply that holds no verdict is invalid: it is counted, and never guessed. What
the endpoint replies is kept by content, so that nothing is asked twice and a judge that is broken off goes on.
"""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Judge
from rlhf.evaluation.answers import Row, read_rows, write_rows
from rlhf.planner.cost import JudgeCalls

KEY = "evaluate.judge"
# What the judge is asked; a change of it is another judge.
INSTRUCTION = """Here are a prompt and two answers to it. Judge which one is better: more helpful, correct and to the point.
Do not let the order or the length of the answers decide. Give your reason in one sentence, then end with a line of its own:
Verdict: A, Verdict: B, or Verdict: tie.

<prompt>
{prompt}
</prompt>

<answer A>
{first}
</answer A>

<answer B>
{second}
</answer B>"""
VERDICT = re.compile(r"(?:verdict\s*:\s*)?\**(A|B|tie)\**\.?", re.IGNORECASE)
# In how many orders it reads two answers.
ORDERS = 2
# Characters of a token, for the estimate of costs.
CHARACTERS = 4
# Seconds before the first new attempt; each later one waits twice as long.
FIRST_WAIT_S = 0.5


@dataclass(frozen=True)
class Question:
    """Two answers to a prompt, in the order in which the judge reads them."""

    prompt: str
    first: str
    second: str

    @property
    def text(self) -> str:
        """The text that the judge reads."""
        return INSTRUCTION.format(prompt=self.prompt, first=self.first, second=self.second)

    @property
    def key(self) -> str:
        """A hash of all that the judge reads."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def make_questions(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[Question, Question]]:
    """Return both orders of each two answers to a prompt."""
    pairs = [(row["prompt"], row["response"], other["response"]) for row, other in zip(first, second, strict=True)]
    return [(Question(prompt, a, b), Question(prompt, b, a)) for prompt, a, b in pairs]


def read_verdict(reply: str) -> str | None:
    """Return the verdict of a reply's last line, `a`, `b` or `tie`; None where it holds none."""
    lines = [line.strip() for line in reply.strip().splitlines()]
    found = VERDICT.fullmatch(lines[-1]) if lines else None
    return None if found is None else found[1].lower()


def combine_verdicts(straight: str | None, swapped: str | None) -> float | None:
    """Return how far the second answer wins by the verdicts of both orders: 1, 0, or 1/2 where they contradict each other
    or are ties; None where one of them is invalid."""
    if straight is None or swapped is None:
        return None
    wins = {"b": 1.0, "a": 0.0, "tie": 0.5}
    return (wins[straight] + 1.0 - wins[swapped]) / 2


def longest_question(config: Config) -> int:
    """Return the tokens of a question at most, about: of the instruction, a prompt and two answers."""
    return len(INSTRUCTION) // CHARACTERS + config.data.max_prompt_tokens + 2 * config.rollout.max_new_tokens


class Endpoint:
    """Asks a judge, as far as its replies are not kept yet.

    Args:
        judge: The keys of `evaluate.judge`.
        directory: Where replies are kept, in a file per judge.
    """

    def __init__(self, judge: Judge, directory: Path) -> None:
        self.judge = judge
        identity = json.dumps([judge.url, judge.model, judge.max_tokens, INSTRUCTION])
        self.file = directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:12]}.jsonl"
        self.known = {line["key"]: str(line["reply"]) for line in read_rows(self.file)}

    def plan_calls(self, questions: Sequence[Question], unmade: int = 0, longest: int = 0) -> JudgeCalls:
        """Return the calls that comparisons take: one for each different question without a reply, and for each of so many
        questions at most whose answers are `unmade` yet, of `longest` tokens. Raises ConfigError for more than
        `evaluate.judge.max_calls`."""
        judge, asked = self.judge, {question.key: question for question in questions if question.key not in self.known}
        number = len(asked) + unmade
        if number > judge.max_calls:
            fix = f"set {KEY}.max_calls={number}, or ask less with evaluate.limit"
            raise ConfigError(f"{KEY}.max_calls", judge.max_calls, f"it would take {number} calls", fix)
        read = sum(len(question.text) for question in asked.values()) // CHARACTERS + unmade * longest
        written, dollars = number * judge.max_tokens, None
        if judge.price_read is not None and judge.price_written is not None:
            dollars = (read * judge.price_read + written * judge.price_written) / 1e6
        answered = len(questions) - len(asked)
        return JudgeCalls(str(judge.model), number, answered, read, written, dollars, is_bound=unmade > 0)

    def ask(self, questions: Sequence[Question], show: Callable[[int, int], None]) -> list[str | None]:
        """Return the verdict of each question. Replies are kept as they come. Raises ConfigError where the endpoint gives
        none."""
        wanted = list({question.key: question for question in questions if question.key not in self.known}.values())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.is_file() and not self.file.read_bytes().endswith(b"\n"):  # killed while it wrote
            write_rows(self.file, read_rows(self.file), "w")
        with ThreadPoolExecutor(self.judge.parallel) as pool, self.file.open("a", encoding="utf-8") as stream:
            try:
                for done, (question, reply) in enumerate(zip(wanted, pool.map(self.post, wanted), strict=True), start=1):
                    self.known[question.key] = reply
                    stream.write(json.dumps({"key": question.key, "reply": reply}, ensure_ascii=False) + "\n")
                    stream.flush()
                    show(done, len(wanted))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [read_verdict(self.known[question.key]) for question in questions]

    def post(self, question: Question) -> str:
        """Ask one question, again where the endpoint cannot be reached, is busy or breaks."""
        judge, problem = self.judge, ""
        body = {
            "model": judge.model, "messages": [{"role": "user", "content": question.text}], "temperature": 0,
            "max_tokens": judge.max_tokens,
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(judge.api_key_variable):
            headers["Authorization"] = f"Bearer {secret}"
        url = str(judge.url).rstrip("/") + "/chat/completions"
        for attempt in range(judge.retries + 1):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(url, json.dumps(body).encode(), headers)
                with urllib.request.urlopen(request, timeout=judge.timeout_s) as reply:
                    return str(json.loads(reply.read())["choices"][0]["message"]["content"] or "")
            except urllib.error.HTTPError as error:
                problem = f"it answers {error.code} {error.reason}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                problem = str(getattr(error, "reason", None) or f"{type(error).__name__}: {error}")
        fix = f"correct the address, set {judge.api_key_variable} where it wants a key; the same command goes on"
        raise ConfigError(f"{KEY}.url", judge.url, f"it gives no verdict ({problem})", fix)
