"""A person's session of blind comparisons, and the requests of its page."""

import json

import pytest

from rlhf.chat.http import Unjudgeable
from rlhf.chat.judging import Judging, Rooms
from rlhf.chat.model import ChatModel
from rlhf.chat.page import build_page
from rlhf.experiment.policies import Policy


@pytest.fixture(scope="module")
def judging(make_config, models, tmp_path_factory):
    """A session of two models of the same weights, of other names."""
    config = make_config("rollout.max_new_tokens=5")
    loaded = [(ChatModel(Policy(name, models[0], models[0]), config), config.rollout) for name in ("ppo", "sft")]
    return Judging(loaded, 3, tmp_path_factory.mktemp("feedback") / "preferences.jsonl", "ann", system="Be brief.")


def answer(judging):
    return [list(side.pieces()) for side in judging.sides.values()]


def test_a_verdict_becomes_a_record_and_the_better_answer_goes_on(judging):
    judging.ask("Why?")
    with pytest.raises(Unjudgeable, match="must be written to their end"):
        judging.judge("left")
    left, right = answer(judging)
    assert left[-1] == {"end": True, "note": "cut"} and left != right
    assert "ppo" not in json.dumps(judging.state()) and "sft" not in json.dumps(judging.state())
    with pytest.raises(Unjudgeable, match="no verdict"):
        judging.judge("ppo")
    judging.judge("right")
    record = json.loads(judging.output.read_text())
    said = "".join(item.get("text", "") for item in right)
    assert (record["chosen"], record["verdict"], record["annotator"]) == (said, "right", "ann")
    assert record["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert {record["chosen_model"], record["rejected_model"]} == {"ppo", "sft"} and len(record["chosen_fingerprint"]) == 64
    assert [message["content"] for message in judging.state()["said"]] == ["Why?", said]
    judging.ask("How?")
    answer(judging)
    judging.judge("both bad")
    assert len(judging.state()["said"]) == 2 and judging.results()["pairs"][0]["bad"] == 1
    assert "chosen" not in json.loads(judging.output.read_text().splitlines()[1])


def test_the_side_of_a_model_is_drawn_anew_for_each_question(judging):
    lefts = set()
    for _ in range(8):
        judging.ask("Why?")
        lefts.add(judging.sides["left"].model.policy.name)
        judging.clear(None)
    assert lefts == {"ppo", "sft"}


def test_only_who_has_the_token_sees_the_page_and_it_loads_nothing_from_elsewhere(judging):
    from fastapi.testclient import TestClient

    client = TestClient(build_page(Rooms(judging.models, 0, judging.output, None), "secret"))
    assert client.get("/").status_code == client.get("/?token=wrong").status_code == 403
    page = client.get("/?token=secret")
    assert page.status_code == 200 and "//" not in page.text.replace("https://", "x").replace("<!--", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.post("/api/open", json={"annotator": "ann"}).status_code == 403
    client.headers["X-Token"] = "secret"
    assert client.post("/api/open", json={"annotator": " "}).json() == {"error": "say who you are, in 1 to 80 characters"}
    session = client.post("/api/open", json={"annotator": "ann"}).json()["session"]
    assert client.post("/api/ask", json={"session": session, "question": "Why?"}).json()["question"] == "Why?"
    lines = client.post("/api/stream", json={"session": session, "side": "left"}).text.splitlines()
    assert json.loads(lines[-1])["end"]
    assert "is over" in client.post("/api/ask", json={"session": "gone"}).json()["error"]
