"""The text of an answer while it grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizers import CHATML, LLAMA2, byte_level, sentencepiece

from rlhf.chat.stream import StopCutter, TextStream
from rlhf.data.templates import build_template

TEMPLATES = {"plain": None, "chatml": CHATML}
TEXTS = st.text(alphabet="ab \n日本é🙂</s>", max_size=24)


@pytest.fixture(scope="module", params=["plain", "chatml", "llama2"])
def template(request, make_config):
    tokenizer = {
        "plain": byte_level,
        "chatml": lambda: byte_level(CHATML),
        "llama2": lambda: sentencepiece("first", LLAMA2),
    }
    name = "plain" if request.param == "plain" else "chat"
    return build_template(make_config(f"data.template={name}").data, tokenizer[request.param]())


@given(TEXTS)
def test_pieces_are_whole_characters_and_together_the_templates_text(template, text):
    tokens = [*template.tokenizer(text, add_special_tokens=False)["input_ids"], template.end_ids[0]]
    stream = TextStream(template.decode, template.lead, template.tail)
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.finish() == template.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_is_shown_as_soon_as_it_is_certain():
    stream = TextStream(lambda tokens: "".join(map(chr, tokens)).removeprefix("<>").removesuffix("##"), "<>", "##")
    assert [stream.push(ord(letter)) for letter in "<>ab #c##"] == ["", "", "a", "b", "", "", " #c", "", ""]
    assert (stream.finish(), stream.shown) == ("", "ab #c")


@given(TEXTS, st.lists(st.text(alphabet="ab </s>", min_size=1, max_size=3), max_size=2), st.integers(1, 5))
def test_a_stop_cuts_the_text_wherever_its_pieces_end(text, stops, size):
    cutter = StopCutter(stops)
    shown = ""
    for start in range(0, len(text), size):
        shown += cutter.push(text[start : start + size])
        if cutter.has_stopped:
            break
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not places:
        assert shown + cutter.finish() == text
    else:  # of several stops the first that is complete cuts
        assert cutter.has_stopped and any(text.startswith(shown + stop) for stop in stops)
