"""A judge behind an OpenAI-compatible endpoint: both orders, replies that are kept, verdicts that are never guessed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Judge
from rlhf.evaluation.judge import Endpoint, combine_verdicts, make_questions, read_verdict


@pytest.fixture
def server():
    """An endpoint that prefers the answer with more `o`, and babbles of a prompt that says so; it notes requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers.get("Authorization"), body))
            text = body["messages"][0]["content"]
            first, second = (text.split(f"<answer {name}>")[1].split("</answer")[0].count("o") for name in "AB")
            said = "A" if first > second else "B" if second > first else "tie"
            reply = "No idea." if "babble" in text else f"Because.\nVerdict: {said}"
            content = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(429 if len(requests) == 1 else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/v1", requests
        found.shutdown()


def judge_at(url, **changes):
    """The keys of a judge."""
    keys = {"max_tokens": 32, "max_calls": 100, "parallel": 2, "timeout_s": 5.0, "retries": 1, "price_read": 1.0}
    return Judge(**{"url": url, "model": "m", "api_key_variable": "A_KEY", "price_written": 2.0, **keys, **changes})


ROWS = [{"prompt": "one", "response": "o"}, {"prompt": "babble", "response": "o"}, {"prompt": "three", "response": "a"}]
OTHERS = [{"prompt": "one", "response": "oo"}, {"prompt": "babble", "response": "oo"}, {"prompt": "three", "response": "b"}]


def test_answers_are_judged_in_both_orders_and_nothing_twice(server, tmp_path, monkeypatch):
    url, requests = server
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setattr("rlhf.evaluation.judge.FIRST_WAIT_S", 0.0)
    questions = [question for orders in make_questions(ROWS, OTHERS) for question in orders]
    endpoint = Endpoint(judge_at(url), tmp_path / "replies")
    calls = endpoint.plan_calls(questions)
    assert (calls.number, calls.answered, calls.written, calls.is_bound) == (6, 0, 6 * 32, False)
    assert calls.dollars == pytest.approx((calls.read + 2 * calls.written) / 1e6)
    assert not (tmp_path / "replies").exists()  # what is only planned writes nothing
    said = endpoint.ask(questions, lambda done, of: None)
    assert said == ["b", "a", None, None, "tie", "tie"]
    assert [combine_verdicts(*said[i : i + 2]) for i in (0, 2, 4)] == [1.0, None, 0.5]
    assert len(requests) == 7  # the first one was refused, and tried again
    assert {(path, key) for path, key, _ in requests} == {("/v1/chat/completions", "Bearer secret")}
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "replies").iterdir())
    (file,) = (tmp_path / "replies").iterdir()
    file.write_text(file.read_text() + '{"key": "cut')  # killed while it wrote
    again = Endpoint(judge_at(url), tmp_path / "replies")
    calls = again.plan_calls(questions, unmade=4, longest=100)
    assert (calls.number, calls.answered, calls.read, calls.is_bound) == (4, 6, 400, True)
    assert calls.describe() == (
        "judge: 4 calls of m at most, 6 answered before, at most 400 tokens read and at most 128 written, $0.00 at most"
    )
    assert again.ask(questions, lambda done, of: None) == said
    assert len(requests) == 7


def test_verdicts_stand_in_the_last_line_and_are_never_guessed():
    assert [read_verdict(text) for text in ("Verdict: A", "Why.\n**B**", "tie", "verdict: Tie.")] == [
        "a",
        "b",
        "tie",
        "tie",
    ]
    assert [read_verdict(text) for text in ("", "A or B", "Verdict: C", "A\nis better", "Answer A is better")] == [None] * 5
    assert combine_verdicts("a", "a") == 0.5  # the first one, whichever it is
    assert combine_verdicts("a", "b") == 0.0


def test_what_cannot_be_asked_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.evaluation.judge.FIRST_WAIT_S", 0.0)
    questions = [question for orders in make_questions(ROWS, OTHERS) for question in orders]
    with pytest.raises(ConfigError, match=r"max_calls=2: it would take 6 calls"):
        Endpoint(judge_at("http://127.0.0.1:9/v1", max_calls=2), tmp_path).plan_calls(questions)
    with pytest.raises(ConfigError, match=r"judge\.url=http://127\.0\.0\.1:9/v1: it gives no verdict"):
        Endpoint(judge_at("http://127.0.0.1:9/v1"), tmp_path).ask(questions, lambda done, of: None)
