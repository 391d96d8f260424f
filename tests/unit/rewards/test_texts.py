"""Values of spans of a response's text on its tokens."""

import pytest
import torch
from support.tiny_tokenizers import CHATML, byte_level, sentencepiece

from rlhf.data.templates import build_template
from rlhf.rewards.texts import find_tokens, place_spans

TEXT = "Wipe the kettle, then é dry 日本 it."


@pytest.fixture(params=["bytes, plain", "bytes, chat", "pieces, plain"])
def template(request, make_config):
    """A template with a tokenizer of bytes, of which a letter may take several tokens, or of pieces."""
    kind, form = request.param.split(", ")
    tokenizer = byte_level(CHATML if form == "chat" else None) if kind == "bytes" else sentencepiece()
    return build_template(make_config(f"data.template={form}").data, tokenizer)


def test_each_character_falls_on_the_token_that_completes_it(template):
    ids = template.whole_answer(template.read("Why?"), TEXT)
    text = template.decode(ids)
    assert text == TEXT
    found = find_tokens(ids, range(1, len(text) + 1), template)
    for end, token in enumerate(found, start=1):
        assert template.decode(ids[: token + 1]).startswith(text[:end])
        assert not template.decode(ids[:token]).startswith(text[:end])
    assert found == sorted(found) and found[-1] == len(ids) - 2  # not on the end of the turn


def test_values_are_summed_on_their_tokens_and_no_padding_has_any(template):
    ids = template.whole_answer(template.read("Why?"), TEXT)
    tokens = torch.tensor([ids + [ids[0]] * 3, ids + [ids[0]] * 3])
    spans = [[(4, 1.0), (len(TEXT), 0.25), (len(TEXT), 0.5)], []]
    placed = place_spans(spans, tokens, torch.tensor([len(ids), len(ids)]), template)
    (first,) = find_tokens(ids, [4], template)
    assert placed[0].nonzero().flatten().tolist() == [first, len(ids) - 2]
    assert placed[0, len(ids) - 2] == 0.75 and not placed[1].any()


def test_a_span_falls_on_the_last_token_where_decoding_is_not_invertible():
    class Reversed:
        def decode(self, ids):
            return "".join(map(chr, reversed(ids)))

    assert find_tokens([97, 98, 99], [1, 2, 3], Reversed()) == [2, 2, 2]
