"""The endpoint that clients of OpenAI's API talk to."""

import json

import pytest

from rlhf.chat.model import ChatModel
from rlhf.chat.openai import Endpoint, Refused, build_app
from rlhf.experiment.policies import Policy

WHY = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def endpoint(make_config, models):
    config = make_config("rollout.max_new_tokens=8")
    return Endpoint({"ppo": (ChatModel(Policy("ppo", models[0], models[0]), config), config.rollout)}, "secret")


def test_a_stream_says_what_the_whole_answer_says_and_a_seed_repeats_it(endpoint):
    request = {"model": "ppo", "messages": WHY, "seed": 5, "n": 2, "presence_penalty": 0, "user": "me"}
    whole = endpoint.reply(request, True).whole()
    first, second = (choice["message"]["content"] for choice in whole["choices"])
    assert first != second and whole["usage"]["completion_tokens"] == 16
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * 2
    events = [event.removeprefix("data: ").strip() for event in endpoint.reply(request, True).events()]
    assert events.pop() == "[DONE]"
    streamed = {0: "", 1: ""}
    for choice in (json.loads(event)["choices"][0] for event in events):
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == {0: first, 1: second}


def test_a_stop_cuts_the_text_before_it(endpoint):
    request = {"model": "ppo", "prompt": "Wipe the", "seed": 1, "max_tokens": 6}
    text = endpoint.reply(request, False).whole()["choices"][0]["text"]
    cut = endpoint.reply({**request, "stop": text[2:4]}, False).whole()["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(text[2:4])], "stop")
    likeliest = [endpoint.reply({**request, "temperature": 0, "seed": seed}, False).whole() for seed in (1, 2)]
    assert likeliest[0]["choices"] == likeliest[1]["choices"]


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ([], 400, "no JSON object"),
        ({"model": "gpt"}, 404, "there is no model 'gpt'; there is ppo"),
        ({"tools": [{}]}, 400, "tools is not supported"),
        ({"logprobs": True}, 400, "logprobs is not supported"),
        ({"temperature": -1}, 400, "temperature=-1.0: out of range"),
        ({"temperature": "hot"}, 400, "temperature is no number"),
        ({"max_tokens": 0}, 400, "max_tokens is no whole number"),
        ({"seed": 1.5}, 400, "seed is no whole number"),
        ({"stop": [""]}, 400, "stop is no text"),
        ({"messages": []}, 400, "no list of messages"),
        ({"messages": [*WHY, {"role": "assistant", "content": "Well"}]}, 400, "the last message is not the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text can be read"),
        ({"messages": [{"role": "user", "content": "Why? " * 999}]}, 400, "leaves no room"),
        ({"messages": [*WHY, *WHY]}, 400, "do not take turns"),
    ],
)
def test_what_cannot_be_answered_is_refused(endpoint, request_, status, message):
    given = {"model": "ppo", "messages": WHY, **request_} if isinstance(request_, dict) else request_
    with pytest.raises(Refused, match=message) as refused:
        endpoint.reply(given, True)
    assert refused.value.status == status


def test_the_key_is_asked_for(endpoint):
    from fastapi.testclient import TestClient

    client = TestClient(build_app(endpoint))
    assert client.get("/v1/models").status_code == 401
    client.headers["Authorization"] = "Bearer secret"
    assert client.get("/v1/models").json()["data"][0]["id"] == "ppo"
    body = {"model": "ppo", "messages": WHY, "seed": 5}
    reply = client.post("/v1/chat/completions", json=body)
    streamed = client.post("/v1/chat/completions", json={**body, "stream": True})
    assert reply.json()["choices"][0]["message"]["content"] and streamed.text.endswith("data: [DONE]\n\n")
    assert client.post("/v1/completions", content="[").json()["error"]["message"] == "the body is no JSON"
