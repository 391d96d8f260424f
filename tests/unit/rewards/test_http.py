"""A reward behind HTTP, asked on a real socket."""

import socket
import threading
from contextlib import contextmanager

import pytest
import torch
from support.tiny_models import save_models

from rlhf.cli.serve_reward import main
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import DEFAULTS
from rlhf.config.schema import RewardTerm
from rlhf.models.source import Source
from rlhf.rewards import http
from rlhf.rewards.http import HttpReward
from rlhf.rewards.sample import Sample
from rlhf.rewards.service import ModelScorer, build_server


@contextmanager
def served(score):
    """The address of a service that scores by a function."""
    server = build_server(score, {"model": "test"}, ("127.0.0.1", 0))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(url, samples, **keys):
    reward = HttpReward("rewards.far.url", RewardTerm(**(DEFAULTS | {"kind": "http", "url": url, "timeout_s": 5.0} | keys)))
    try:
        reward.ask(samples)
        return reward.answer()
    finally:
        reward.close()


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)


def test_a_batch_is_posted_with_its_records():
    def score(request):
        return [None if r.get("skip") else len(p) + len(t) for p, t, r in zip(*list(request.values())[:3], strict=True)]

    with served(score) as url:
        assert ask(url, [Sample("ab", "c"), Sample("ab", "c", {"skip": 1})]) == [3.0, None]
        assert ask(url, []) == []


def test_a_request_is_tried_again_where_the_service_breaks():
    calls = []

    def score(request):
        calls.append(request)
        if len(calls) < 3:
            raise RuntimeError("out of memory")
        return [1.0]

    with served(score) as url:
        assert ask(url, [Sample("?", "a")], retries=2) == [1.0]
        calls.clear()
        with pytest.raises(ConfigError, match=r"no scores in 2 attempts .*it answers 500: out of memory"):
            ask(url, [Sample("?", "a")], retries=1)


@pytest.mark.parametrize(
    ("reply", "told"),
    [(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{", "IncompleteRead"), (b"hello\r\n", "hello")],
)
def test_a_reply_that_breaks_off_or_is_no_http_is_told(reply, told):
    """As of a proxy that goes down, or of another service on that port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            for _ in range(2):
                with server.accept()[0] as asked:
                    asked.recv(10_000)
                    asked.sendall(reply)
                    asked.shutdown(socket.SHUT_WR)
                    while asked.recv(10_000):  # closing beside what is unread would reset the connection
                        continue

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ConfigError, match=rf"no scores in 2 attempts .*{told}"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}", [Sample("?", "a")], retries=1)
        thread.join()


def test_what_is_refused_or_is_no_score_is_told():
    def refuse(request):
        raise ValueError("no such model")

    with served(refuse) as url, pytest.raises(ConfigError, match="it answers 400: ValueError: no such model"):
        ask(url, [Sample("?", "a")])
    with served(lambda request: ["high"]) as url, pytest.raises(ConfigError, match="its score is 'high', no number"):
        ask(url, [Sample("?", "a")], retries=0)
    with pytest.raises(ConfigError, match=r"rewards.far.url=http://127.0.0.1:9: the service gives .*serve-reward"):
        ask("http://127.0.0.1:9", [Sample("?", "a")], retries=0)


def test_a_served_model_gives_the_scores_that_it_gives_here(make_config, tokenizer, tmp_path):
    config = make_config()
    _, path = save_models(config, tokenizer, tmp_path)
    scorer = ModelScorer(Source(path, "test"), config, batch_size=2)
    samples = [
        Sample("How?", "Yes."),
        Sample("Why do I clean a kettle?", "Because it is old.", ended=False),
        Sample("?", ""),
    ]
    with served(scorer) as url:
        found = ask(url, samples)
        with pytest.raises(ConfigError, match="it answers 400"):
            ask(url, [Sample(3, "Yes.")])
    alone = [scorer({"prompts": [s.prompt], "responses": [s.response], "ended": [s.ended]})[0] for s in samples]
    assert found == pytest.approx(alone, abs=1e-5) and len(set(found)) == 3
    (item,), template = scorer.encode({"prompts": ["How?"], "responses": ["Yes."]}), scorer.template
    assert item == template.encode_answer(template.shorten("How?"), "Yes.")  # as the model was trained
    assert item.response[-1] == tokenizer.eos_token_id and torch.isfinite(torch.tensor(found)).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no/such/dir", "--port", "70000"], "--port 70000"),
        ([], "the following arguments are required: model"),
        (["./nowhere"], "serve-reward=./nowhere: "),
    ],
)
def test_what_cannot_be_served_is_refused(capsys, words, told):
    assert main(words) == 2
    assert told in capsys.readouterr().err.replace("\n", "")
