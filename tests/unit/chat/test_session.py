"""A conversation on the terminal, on a small random model."""

import io
import json

import pytest

from rlhf.chat.conversation import Conversation
from rlhf.chat.model import ChatModel
from rlhf.chat.session import Session
from rlhf.config.terminal import Terminal
from rlhf.data.records import load_dataset
from rlhf.experiment.policies import find_policy


@pytest.fixture(scope="module")
def model(make_config, models):
    return ChatModel(find_policy(models[0], "chat"), make_config())


@pytest.fixture
def talk(model, make_config):
    """`talk(*lines)`: the session, the answers that were printed, and the notes beside them."""

    def say(*lines, count=1, **keys):
        rollout = make_config("rollout.max_new_tokens=6").rollout
        out, notes = (Terminal(file=io.StringIO(), soft_wrap=True) for _ in range(2))
        score = lambda: lambda prompt, response, ended: {"gold": float(len(prompt))}  # noqa: E731
        session = Session([Conversation(model, rollout, 7) for _ in range(count)], score, out, notes, **keys)
        session.run(lines)
        return session, out.file.getvalue(), notes.file.getvalue()

    return say


def test_turns_are_asked_with_what_was_said_before(talk):
    session, printed, _ = talk("/system Be brief.", "Hi", "//slash", "/undo", "Why?", "/quit", "Never asked.")
    assert [message.role for message in session.conversations[0].turns[1].prompt] == ["system", "user", "assistant", "user"]
    assert [record["prompt"][-1]["content"] for record in session.records] == ["Hi", "Why?"]
    assert session.records[0]["response"] in printed and printed.count("\n") >= 3


def test_a_seed_repeats_a_conversation_alone_or_beside_and_retry_draws_anew(talk):
    answers = lambda session: [record["response"] for record in session.records]  # noqa: E731
    alone, beside = talk("Hi", "Why?")[0], talk("Hi", "Why?", count=2)[0]
    assert answers(alone) == answers(talk("Hi", "Why?")[0]) == answers(beside)[::2] == answers(beside)[1::2]
    again = talk("Hi", "Why?", "/retry")[0]
    assert answers(again)[0] == answers(alone)[0] and answers(again)[1] != answers(alone)[1]
    assert [record["sample"] for record in again.records] == [0, 1]


def test_the_transcript_holds_records_that_data_sets_are_read_from(talk, tmp_path, make_config):
    file = tmp_path / "talk.jsonl"
    session, printed, notes = talk("Hi", "/score", "/clear", "Why?", "/nonsense", transcript=file)
    assert "gold 1.000" in printed and "there is no /nonsense" in notes and "cut at 6 tokens" in notes
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records == session.records and records[0]["scores"] == {"gold": 1.0}
    assert [(record["prompt"], record["turn"]) for record in records] == [("Hi", 0), ("Why?", 1)]
    read = load_dataset(make_config("data=files", f"data.files.train={file}", f"data.files.heldout={file}"))
    assert [(d.prompt, d.response) for d in read.train.demonstrations] == [(r["prompt"], r["response"]) for r in records]


def test_ctrl_c_stops_the_answer_and_not_the_program(talk, model, monkeypatch):
    write = model.write

    def interrupted(*arguments):
        for number, token in enumerate(write(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(model, "write", interrupted)
    session, _, notes = talk("Hi", "Why?")
    assert notes.count("(stopped)") == 2 and [record["tokens"] for record in session.records] == [3, 3]
    assert not any(record["ended"] for record in session.records)


def test_a_question_without_room_is_told_and_not_kept(talk):
    session, _, notes = talk("Hi " * 2000, "Hi")
    assert "error: the question leaves no room for an answer" in notes and len(session.records) == 1
