"""Ranking the responses of a pool: what is read, what the page may ask, and the records that data readers take."""

import json
from dataclasses import asdict

import pytest

from rlhf.chat.labelling import Labels, check_output
from rlhf.chat.page import build_page
from rlhf.chat.pool import read_pool
from rlhf.chat.preferences import make_ranking
from rlhf.config.errors import ConfigError
from rlhf.data.records import pairs_of
from rlhf.data.shapes import SHAPES, match_shapes

TOKEN = {"X-Token": "secret"}


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pool(tmp_path):
    """Three prompts with four responses each of two models, and one whose responses are the same."""
    rows = [
        {"prompt": f"prompt {n}", "response": f"{model} {n} {k}", "model": model, "fingerprint": model * 9, "seed": 7}
        for n in range(3)
        for model in ("a", "b")
        for k in range(2)
    ]
    write_lines(tmp_path / "pool.jsonl", [*rows, *[{"prompt": "same", "response": "alike"}] * 2])
    return tmp_path / "pool.jsonl"


def open_page(labels, annotator="ann"):
    client = pytest.importorskip("fastapi.testclient").TestClient(build_page(labels, "secret"))

    def act(action, **given):
        reply = client.post(f"/api/{action}", json={"session": state.get("session"), **given}, headers=TOKEN)
        state.update(reply.json())
        return reply

    state = {}
    assert act("open", annotator=annotator).status_code == 200
    return act, state


def read_output(labels):
    return [json.loads(line) for line in labels.output.read_text().splitlines()]


def test_an_order_becomes_a_ranking_that_the_reader_takes_and_a_person_goes_on_where_it_stopped(pool, tmp_path):
    found = read_pool([str(pool)], 3, 0)
    assert (len(found.items), found.left_out) == (3, 1)
    assert all(sorted({r.model for r in item.responses}) == ["a", "b"] for item in found.items)
    labels = Labels(found.items, 3, 0, tmp_path / "out" / "rankings.jsonl")
    act, state = open_page(labels)
    assert (state["done"], state["of"]) == (0, 3) and "model" not in json.dumps(state)
    first, shown = state["item"], [response["text"] for response in state["responses"]]
    act("skip", item=first)
    assert state["item"] != first and state["done"] == 0
    assert act("rank", item=first, verdict="ranked", ranks=[1, 2, 3]).status_code == 400
    act("rank", item=state["item"], verdict="both bad")
    act("rank", item=state["item"], verdict="ranked", ranks=[5, 5, 5])
    assert state["item"] == first and (state["done"], state["of"]) == (2, 3)
    assert act("rank", item=first, verdict="ranked", ranks=[1, 2]).status_code == 400
    # A new session of the same person has the rest, in the same order on the page; another person has all of it.
    act, state = open_page(Labels(found.items, 3, 0, labels.output))
    assert state["done"] == 2 and [response["text"] for response in state["responses"]] == shown
    assert open_page(Labels(found.items, 3, 0, labels.output), "bob")[1]["done"] == 0
    act("rank", item=first, verdict="ranked", ranks=[2, 7, 7])
    assert state["item"] is None and state["done"] == 3
    bad, tie, ranked = read_output(labels)
    assert (bad["verdict"], bad["answers"], tie["verdict"], tie["answers"]) == ("both bad", [], "tie", [])
    assert [(answer["answer"], answer["rank"]) for answer in ranked["answers"]] == [
        (shown[0], 1),
        (shown[1], 2),
        (shown[2], 2),
    ]
    best = ranked["answers"][0]
    assert (best["fingerprint"], best["seed"], ranked["annotator"]) == (best["model"] * 9, 7, "ann")
    assert match_shapes(ranked) == ["ranked"]
    (record,) = SHAPES["ranked"].convert(ranked)
    assert sorted(pair[:2] for pair in pairs_of(record)) == sorted((shown[0], other) for other in shown[1:])
    with pytest.raises(ConfigError, match="it holds rankings"):
        check_output(labels.output, 2)


def test_of_two_responses_a_record_is_a_pair(pool, tmp_path):
    labels = Labels(read_pool([str(pool)], 2, 0).items, 2, 0, tmp_path / "preferences.jsonl")
    act, state = open_page(labels)
    left, right = (response["text"] for response in state["responses"])
    act("rank", item=state["item"], verdict="ranked", ranks=[2, 1])
    act("rank", item=state["item"], verdict="tie")
    better, tie = read_output(labels)
    assert (better["chosen"], better["rejected"], better["verdict"]) == (right, left, "right")
    assert better["chosen_model"] != better["rejected_model"] and "chosen" not in tie and tie["verdict"] == "tie"
    assert match_shapes(better) == ["pairs"]


def test_what_stages_have_kept_is_a_pool(tmp_path):
    stages = tmp_path / "stages"
    policy, evaluation, trained = (stages / f"{kind}-{1:012x}" for kind in ("ppo", "evaluate", "dpo"))
    spec = {"inputs": {"actor": str(policy / "model")}, "config": {"seed": 3}}
    for directory, own in ((policy, {"fingerprint": "f" * 64}), (evaluation, spec), (trained, spec | {"fingerprint": "d"})):
        directory.mkdir(parents=True)
        (directory / "spec.json").write_text(json.dumps(own))
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": "<s>Why?", "messages": said, "response": f"So {n}.", "number": n} for n in range(3)]
    write_lines(evaluation / "answers.jsonl", rows)
    (item,) = read_pool([str(evaluation)], 9, 0).items
    assert item.text == "system: Be brief.\n\nuser: Why?" and item.prompt == said
    ranking = make_ranking(said, "ranked", [asdict(response) for response in item.responses], [1, 2, 3], {})
    (record,) = SHAPES["ranked"].convert(ranking)
    assert [message.content for message in record.prompt] == ["Be brief.", "Why?"]
    assert sorted((r.response, r.model, r.fingerprint, r.seed, r.sample) for r in item.responses) == [
        (f"So {n}.", policy.name, "f" * 64, 3, n) for n in range(3)
    ]
    rows = [
        {"step": step, "prompt": f"at {step}", "sft": "No.", "sft_score": 0, "dpo": "Yes.", "dpo_score": 1}
        for step in (4, 8)
    ]
    write_lines(trained / "samples.jsonl", rows)
    (item,) = read_pool([str(trained)], 2, 0).items
    assert item.prompt == "at 8" and {r.model for r in item.responses} == {policy.name, trained.name}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"prompt": "Why?", "response": "So."}\n{"prompt"', "line 2 is no JSON object"),
        ('{"prompt": [], "response": "So."}\n', "row 1 has no `prompt`"),
        ('{"prompt": "Why?", "response": "So."}\n', "no prompt has two different responses"),
    ],
)
def test_a_pool_that_cannot_be_ranked_says_why(tmp_path, content, problem):
    (tmp_path / "pool.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=problem):
        read_pool([str(tmp_path / "pool.jsonl")], 2, 0)
