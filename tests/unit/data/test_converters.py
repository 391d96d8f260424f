"""Rows of every shape become the records that they are, and what holds none is dropped with its reason."""

import pytest

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Columns, Data, Files
from rlhf.config.sources import Source
from rlhf.data.cells import CellError, Dropped
from rlhf.data.dataset import Labelled, Message, Record
from rlhf.data.files import Origin
from rlhf.data.records import build_part, build_split
from rlhf.data.shapes import SHAPES, find_shape
from rlhf.data.templates.plain import render_prompt, render_response

FORMAT = "Human: {prompt}\n\nAssistant:"
DATA = Data(
    source="files",
    converter="auto",
    heldout_fraction=None,
    files=Files("a.jsonl", "b.jsonl"),
    format="plain",
    prompt_format=FORMAT,
    response_format=" {response}",
    columns=Columns("prompt", "response", "chosen", "rejected"),
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def gpt(*texts):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def node(name, parent, role, text, rank=None, **more):
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, **more}


def split(rows, **keys):
    """The records that the stages read of rows, in the shape that is recognised."""
    data = Data(**{**vars(DATA), **keys})
    origin = Origin("data.files.train", "a.jsonl")
    whole, _ = build_part(Source(data), "train", [(origin, row) for row in enumerate(rows, 1)])
    return build_split(whole, data)


def convert(row, shape=None):
    """The only record of a row."""
    if shape is None:
        shape = find_shape(DATA, row, "a.jsonl")[0]
    return next(iter(SHAPES[shape].convert(row)))


Q = (Message("user", "q"),)
MULTI = (Message("user", "q"), Message("assistant", "a"), Message("user", "r"))
ROWS = {
    "pairs": [
        ({"prompt": "q", "response": ""}, Record("q", "")),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "id": 3}, Record("q", None, "a", "b", meta={"id": 3})),
        ({"prompt": [user("q")], "response": "a"}, Record(Q, "a")),
        ({"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]}, Record(Q, None, "a", "b")),
        (
            {"prompt": "q", "messages": [user("q"), assistant("a")], "score_chosen": 8.0,
             "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            Record(Q, None, "a", "b", meta={"score_chosen": 8.0}),
        ),
        (
            {"chosen": [user("q"), assistant("a"), user("r"), assistant("c")],
             "rejected": [user("q"), assistant("a"), user("r"), assistant("d")]},
            Record(MULTI, None, "c", "d"),
        ),
    ],
    "transcripts": [
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c",
             "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"},
            Record(MULTI, None, "c", ""),
        ),
    ],
    "messages": [
        ({"messages": [user("q"), assistant("a")], "source": "s"}, Record(Q, "a", meta={"source": "s"})),
        ({"conversations": gpt("q", "a", "r", "b")}, Record(MULTI, "b")),
        ({"conversations": gpt("q", "a"), "system": "Be kind."}, Record((Message("system", "Be kind."), *Q), "a")),
    ],
    "completion": [
        ({"prompt": "q", "completion": "a"}, Record("q", "a")),
        ({"prompt": "q", "completion": "a", "label": False}, Record("q", labelled=(("a", False),))),
        ({"prompt": "q", "completion": "a", "label": "True"}, Record("q", labelled=(("a", True),))),  # as in CSV
        ({"prompt": [user("q")], "completion": [assistant("a")], "label": True}, Record(Q, labelled=(("a", True),))),
    ],
    "alpaca": [
        ({"instruction": "q", "input": "", "output": "a"}, Record("q", "a")),
        ({"instruction": "q", "input": "x", "output": "a", "text": "Below is"}, Record("q\n\nx", "a")),
    ],
    "dolly": [
        ({"instruction": "q", "context": "x", "response": "a", "category": "qa"},
         Record("q\n\nInput:\nx", "a", meta={"category": "qa"})),
    ],
    "lmflow": [
        ({"type": "text2text", "instances": [{"input": "q", "output": "a"}]}, Record("q", "a")),
        ({"type": "conversation", "instances": [{"messages": [user("q"), assistant("a")], "system": "s"}]},
         Record((Message("system", "s"), *Q), "a")),
        ({"type": "paired_conversation", "instances": [
            {"chosen": {"messages": [user("q"), assistant("a")]}, "rejected": {"messages": [user("q"), assistant("b")]}}
        ]}, Record(Q, None, "a", "b")),
    ],
    "ranked": [
        ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [
            {"answer": "b", "model": "m", "rank": 2.0}, {"answer": "a", "model": "n", "rank": 1.0}
        ]}, Record(Q, ranked=(("b", -2.0), ("a", -1.0)))),
    ],
    "question": [
        ({"question": "q", "answer": "6 * 200 = 1200\n#### $1,200"}, Record("q", "6 * 200 = 1200\n#### $1,200",
                                                                          meta={"answer": "1200"})),
    ],
    "problem": [
        ({"problem": "q", "solution": r"so \boxed{1} and \boxed{\frac{1}{2}}.", "level": "Level 1"},
         Record("q", r"so \boxed{1} and \boxed{\frac{1}{2}}.", meta={"level": "Level 1", "answer": r"\frac{1}{2}"})),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("shape", "row", "record"), [(shape, *case) for shape, cases in ROWS.items() for case in cases])
def test_a_shape_is_recognised_and_read(shape, row, record):
    assert find_shape(DATA, row, "a.jsonl")[0] == shape
    assert convert(row) == record


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "q", "completion": "a", "response": "b"}, "pairs or completion"),
        ({"prompt": "q", "response": "a", "question": "q", "answer": "a"}, "pairs or question"),
    ],
)
def test_columns_of_two_shapes_are_refused_until_one_is_named(row, shape):
    with pytest.raises(ConfigError, match=f"which may be {shape}; say which it is, as data.converter=pairs"):
        split([row])
    assert split([row], converter="pairs").prompts == ["q"]


def test_unknown_columns_come_with_those_found_and_the_shapes_known():
    with pytest.raises(ConfigError) as error:
        split([{"frage": "q", "antwort": "a"}])
    said = str(error.value)
    assert "no row has it (found: frage, antwort)" in said and "alpaca (instruction, output)" in said and "\n" not in said
    with pytest.raises(ConfigError, match=r"^data\.converter=nope: there is no such shape; choose one of auto, pairs"):
        split([{"prompt": "q"}], converter="nope")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": None, "response": "a"}, "rows without a prompt"),
        ({"prompt": "", "response": "a"}, "rows with an empty prompt"),
        ({"messages": [user("q")]}, "conversations without an answer"),
        ({"messages": [{"role": "tool", "content": "q"}, assistant("a")]}, "conversations in which 'tool' speaks"),
        ({"messages": [user("q"), user("r"), assistant("a")]}, "user and assistant do not take turns"),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("x"), assistant("b")]}, "differ before the last answer"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: a"}, "differ before the last"),
    ],
)
def test_what_holds_no_record_is_counted_with_the_reason(row, reason):
    empty = dict.fromkeys(row)
    good = (
        {"prompt": "q", "response": "a"}
        if "prompt" in row
        else row
        | {
            key: [user("q"), assistant("a")] if isinstance(row[key], list) else "\n\nHuman: q\n\nAssistant: a"
            for key in row
        }
    )
    found = split([row, good, empty])
    assert found.prompts == ["q"] and found.rows == 3
    assert sum(found.left_out.values()) == 2 and any(reason in kind for kind in found.left_out)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [user("q"), assistant(5)]}, "row 1, column messages[1].content: it is a number, not text"),
        ({"messages": ["q", "a"]}, "row 1, column messages: it is a list, not messages"),
        ({"prompt": "q", "chosen": [assistant("a")], "rejected": "b"}, "row 1, column rejected: it is text, not messages"),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "row 1, column label: it is 'yes', not a label"),
        ({"chosen": "a", "rejected": "b"}, "row 1, column chosen: it is no transcript"),
        ({"type": "text_only", "instances": [{"text": "a"}]}, "row 1, column type: instances of the type 'text_only'"),
        ({"type": "text2text", "instances": [{"input": 1, "output": "a"}]}, "column instances[0].input: it is a number"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": "1"}]}, "row 1, column rank: it is text, not a number"),
    ],
)
def test_a_cell_of_another_type_is_refused_with_row_column_and_type(row, said):
    with pytest.raises(ConfigError) as error:
        split([row])
    assert str(error.value).startswith("data.files.train=a.jsonl: ") and said in str(error.value)


def test_a_tree_gives_each_question_its_ranked_answers():
    rows = [
        node("1", None, "prompter", "q", lang="en"), node("2", "1", "assistant", "good", 0),
        node("3", "1", "assistant", "bad", 1), node("4", "2", "prompter", "r"), node("5", "4", "assistant", "only"),
        node("6", "2", "prompter", "unanswered"), node("7", "1", "assistant", "gone", 2, deleted=True),
        node("8", "missing", "prompter", "lost"),
    ]  # fmt: skip
    found = split(rows)
    asked = [(Message("user", "q"), Message("assistant", "good"), Message("user", text)) for text in ("r", "unanswered")]
    assert found.prompts == ["q", *asked]
    assert [(c.prompt, c.chosen, c.rejected) for c in found.comparisons] == [("q", "good", "bad")]
    assert [(d.prompt, d.response) for d in found.demonstrations] == [("q", "good"), (asked[0], "only")]
    assert found.left_out == {"deleted messages": 1, "messages whose conversation lacks its beginning": 1}
    assert found.meta["q"]["lang"] == "en"


def test_a_ranking_is_all_its_pairs_and_its_best_is_imitated():
    answers = [{"answer": name, "rank": rank} for name, rank in (("c", 3), ("a", 1), ("b", 2), ("d", 3))]
    found = split([{"prompt": "q", "answers": answers}])
    assert {(pair.chosen, pair.rejected) for pair in found.comparisons} == {
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"),
    }  # fmt: skip
    assert [made.response for made in found.demonstrations] == ["a"]


def test_only_desirable_responses_are_imitated():
    found = split([{"prompt": "q", "completion": name, "label": name == "a"} for name in "ab"])
    assert [made.response for made in found.demonstrations] == ["a"] and found.prompts == ["q"]
    assert list(found.labelled) == [Labelled("q", "a", True), Labelled("q", "b", False)]
    assert found.left_out == {} and found.unread["demonstrations"] == 1


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (FORMAT, "Human: Be kind.\n\nHi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant:"),
        (" Human: {prompt} Assistant:", " Human: Be kind.\n\nHi Assistant: Hello. Human: Who? Assistant:"),
        (
            "\n\nHuman: {prompt}\n\nAssistant:",
            "\n\nHuman: Be kind.\n\nHi\n\nAssistant: Hello.\n\nHuman: Who?\n\nAssistant:",
        ),
    ],
)
def test_a_conversation_is_read_turn_by_turn_in_the_prompts_format(form, text):
    data = Data(format="plain", prompt_format=form, response_format=" {response}")
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", " Hello.\n"), ("user", "Who?")]
    assert render_prompt(tuple(Message(*message) for message in said), data) == text
    assert render_response(" You.\n", data) == " You."


def test_a_transcript_is_read_back_as_it_was_written():
    text = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"
    data = Data(format="plain", prompt_format="\n\nHuman: {prompt}\n\nAssistant:", response_format=" {response}")
    record = convert({"chosen": text + " c", "rejected": text + " d"})
    assert render_prompt(record.prompt, data) + render_response(record.chosen, data) == text + " c"


@pytest.mark.parametrize("form", ["{prompt}", " {prompt}\n"])
def test_a_format_that_does_not_say_who_speaks_is_refused_for_conversations(form):
    with pytest.raises(ConfigError, match=r"^data\.prompt_format=.*does not say who speaks"):
        split([{"messages": [user("q"), assistant("a")]}], prompt_format=form)


def halve(cells):
    """A converter of one's own."""
    if cells["n"] == 0:
        raise Dropped("rows of nothing")
    yield Record(cells["text"], str(10 // (cells["n"] - 1)))


def test_a_function_of_ones_own_reads_rows(monkeypatch):
    name = f"{__name__}:halve"
    found = split([{"text": "q", "n": 3}, {"text": "r", "n": 0}], converter=name)
    assert [made.response for made in found.demonstrations] == ["5"] and found.left_out == {"rows of nothing": 1}
    with pytest.raises(ConfigError, match=r"^data\.converter=.*:halve: it fails on row 1 of a\.jsonl \(ZeroDivisionError"):
        split([{"text": "q", "n": 1}], converter=name)
    with pytest.raises(ConfigError, match=r"^data\.converter=nowhere:f: it cannot be imported"):
        split([{"text": "q", "n": 1}], converter="nowhere:f")


def test_errors_of_cells_name_the_place():
    with pytest.raises(CellError, match=r"^column chosen\[0\]\.content: there is no such key"):
        convert({"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}, "pairs")


def test_a_prompt_that_is_not_in_its_conversation_is_counted():
    """As where columns of two sets were joined in another order."""
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    asked = [{"role": "user", "content": "Hm."}, {"role": "assistant", "content": "?"}, *said]
    good = [{"prompt": "Why?", "chosen": said, "rejected": said}, {"prompt": " Why?\n", "chosen": asked, "rejected": asked},
            {"prompt": [said[0]], "chosen": asked, "rejected": asked}]  # fmt: skip
    found = split([*good, {"prompt": "Who?", "chosen": said, "rejected": said}])
    assert len(found.comparisons) == 3 and found.left_out == {"rows whose prompt is not in their conversation": 1}


def test_turns_of_helpsteer2_are_messages():
    prompt = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhy?\nNow."
    record = convert({"prompt": prompt, "response_1": "a", "response_2": "b", "preference_strength": -2})
    turns = (("user", "Hi"), ("assistant", "Hello."), ("user", "Why?\nNow."))
    assert record.prompt == tuple(Message(*turn) for turn in turns) and record.chosen == "a"
