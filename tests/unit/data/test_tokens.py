import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.texts import encode_comparisons, encode_demonstrations, encode_prompt, encode_response

from rlhf.data.dataset import Comparison, Demonstration
from rlhf.data.encoded import Encoded
from rlhf.data.templates import build_template
from rlhf.data.tokens import (
    comparison_batch,
    count_truncated,
    left_mask,
    prompt_batch,
    response_mask,
    right_mask,
    sequence_batch,
)

CPU = torch.device("cpu")
PAD, EOS = 0, 1  # small ids on purpose: texts below hold them too
texts = st.lists(st.integers(0, 4), min_size=1, max_size=7)


@pytest.fixture
def data(make_config):
    return make_config().data


def words(count):
    return " ".join(["kettle"] * count)


def test_a_response_has_a_leading_space_and_ends_with_end_of_text(tokenizer, data):  # row 2
    ids = encode_response("Wipe the lamp.", tokenizer, data)
    assert ids == [*tokenizer.encode(" Wipe the lamp.", add_special_tokens=False), tokenizer.eos_token_id]
    assert tokenizer.decode(ids[:1]).startswith(" ")
    assert tokenizer.decode(ids[:-1]) == " Wipe the lamp."
    assert ids.count(tokenizer.eos_token_id) == 1


def test_space_around_a_response_does_not_change_its_ids(tokenizer, data):
    assert encode_response("  Good question.\n", tokenizer, data) == encode_response("Good question.", tokenizer, data)


def test_prompt_and_response_read_as_the_whole_text(tokenizer, data):  # row 2
    prompt, response = encode_prompt("How do I clean a lamp?", tokenizer, data), encode_response("Wipe.", tokenizer, data)
    assert tokenizer.decode(prompt + response[:-1]) == "Human: How do I clean a lamp?\n\nAssistant: Wipe."
    assert tokenizer.eos_token_id not in prompt


def test_a_response_that_is_too_long_is_cut_and_has_no_end(tokenizer, data):
    """Nobody shall learn to stop in the middle of a sentence, nor score a fragment as a finished answer."""
    whole = encode_response(words(20), tokenizer, data)
    data.max_response_tokens = len(whole)
    assert encode_response(words(20), tokenizer, data) == whole
    assert whole[-1] == tokenizer.eos_token_id
    for missing in (1, 3):
        data.max_response_tokens = len(whole) - missing
        assert encode_response(words(20), tokenizer, data) == whole[:-missing]


def test_responses_that_were_cut_are_counted_once_each(tokenizer, data):
    whole = len(encode_response(words(20), tokenizer, data))
    data.max_response_tokens = whole - 1
    demonstrations = [Demonstration("Why?", words(20)), Demonstration("Why?", "Short."), Demonstration("How?", words(20))]
    encoded = encode_demonstrations(demonstrations, build_template(data, tokenizer))
    assert [item.cut for item in encoded] == [True, False, True]
    assert count_truncated(encoded) == {"data/responses": 3.0, "data/responses_cut": 2.0}
    pairs = encode_comparisons(comparisons((words(20), "a", "b")), build_template(data, tokenizer), grouped=True)
    answers = [answer for element in pairs for pair in element for answer in pair]
    assert count_truncated(answers) == {"data/responses": 3.0, "data/responses_cut": 1.0}


@pytest.fixture(scope="module")
def closing(tokenizer):
    """The tokenizer, but one that puts a token before every text and end-of-text after it."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    special = [("<|pad|>", tokenizer.pad_token_id), ("<|endoftext|>", tokenizer.eos_token_id)]
    changed.backend_tokenizer.post_processor = TemplateProcessing(single="<|pad|> $A <|endoftext|>", special_tokens=special)
    assert changed("a")["input_ids"][-1] == tokenizer.eos_token_id
    return changed


def test_a_prompt_never_ends_with_end_of_text(tokenizer, closing, data):
    """Some tokenizers end every text with it; the response would be learned as the beginning of another text."""
    plain, pad = encode_prompt("How do I clean a lamp?", tokenizer, data), tokenizer.pad_token_id
    assert encode_prompt("How do I clean a lamp?", closing, data) == [pad, *plain]
    assert build_template(data, closing).encode_text("Wipe.")[:-1] == [pad, *tokenizer("Wipe.")["input_ids"]]
    assert encode_response("Wipe.", closing, data) == encode_response("Wipe.", tokenizer, data)
    data.truncation, data.max_prompt_tokens = "left", 5
    assert encode_prompt("How do I clean a lamp?", closing, data) == [pad, *plain[-4:]]


def test_padding_is_not_end_of_text(tokenizer):  # row 3
    assert tokenizer.pad_token_id is not None
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@given(st.lists(texts, min_size=1, max_size=5))
def test_prompts_are_padded_on_the_left_and_masked_by_length(prompts):  # row 1
    batch = prompt_batch(prompts, list(range(len(prompts))), PAD, CPU)
    width = max(map(len, prompts))
    mask = left_mask(batch.lengths, width)
    assert batch.ids.shape == mask.shape == (len(prompts), width)
    for prompt, ids, keep in zip(prompts, batch.ids, mask, strict=True):
        assert ids[keep.bool()].tolist() == prompt  # even where the prompt holds the padding's id
        assert keep.tolist() == [0] * (width - len(prompt)) + [1] * len(prompt)
        assert set(ids[keep == 0].tolist()) <= {PAD}


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_sequences_are_padded_on_the_right_and_masked_by_length(pairs):  # row 1
    batch = sequence_batch([Encoded(*pair) for pair in pairs], PAD, CPU)
    width = batch.ids.size(1)
    whole, answers = right_mask(batch.lengths, width), response_mask(batch)
    for (prompt, response), ids, keep, answer in zip(pairs, batch.ids, whole, answers, strict=True):
        assert ids[keep.bool()].tolist() == prompt + response
        assert keep.tolist() == [1] * len(prompt + response) + [0] * (width - len(prompt + response))
        assert ids[answer.bool()].tolist() == response
        assert answer.sum() == len(response)


def test_special_tokens_written_out_in_a_text_are_text(tokenizer, data):  # rows 1, 3
    texts = ["Is <|pad|><|endoftext|> a word?", "No."]
    prompts = [encode_prompt(text, tokenizer, data) for text in texts]
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(prompts[0])
    assert tokenizer.decode(prompts[0]) == f"Human: {texts[0]}\n\nAssistant:"
    batch = prompt_batch(prompts, [0, 1], tokenizer.pad_token_id, CPU)
    assert left_mask(batch.lengths, batch.ids.size(1)).sum(1).tolist() == [len(prompt) for prompt in prompts]
    answers = [Encoded(prompts[1], encode_response(text, tokenizer, data)) for text in texts]
    rows = sequence_batch(answers, tokenizer.pad_token_id, CPU)
    assert response_mask(rows).sum(1).tolist() == [len(answer.response) for answer in answers]


class TakesPositions(torch.nn.Module):
    def forward(self, input_ids, attention_mask, position_ids):
        return position_ids


def test_padded_ids_become_valid_and_positions_count_real_tokens():  # rows 4, 5
    from rlhf.models.heads import model_inputs

    ids, mask = torch.tensor([[99, 99, 5, 6, 99], [7, 99, 8, 9, 4]]), torch.tensor([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    inputs = model_inputs(TakesPositions(), ids, mask)
    assert inputs["input_ids"].tolist() == [[0, 0, 5, 6, 0], [7, 99, 8, 9, 4]]
    assert inputs["attention_mask"].tolist() == mask.tolist()
    assert inputs["position_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 1, 2, 3, 4]]


def test_a_prompt_that_fits_is_left_whole(tokenizer, data):
    for data.truncation in ("paragraphs", "left", "drop"):
        ids = encode_prompt("a\nb", tokenizer, data)
        assert tokenizer.decode(ids) == "Human: a\nb\n\nAssistant:"
        data.max_prompt_tokens = len(ids)
        assert encode_prompt("a\nb", tokenizer, data) == ids


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_whole_paragraphs_are_dropped_from_the_start(tokenizer, data, kept):  # row 1
    paragraphs = [f"{words(4)} {name}." for name in "abcde"]
    wanted = encode_prompt("\n".join(paragraphs[-kept:]), tokenizer, data)
    data.max_prompt_tokens = len(wanted)
    assert encode_prompt("\n".join(paragraphs), tokenizer, data) == wanted
    data.max_prompt_tokens += 1  # not enough for another paragraph
    assert encode_prompt("\n".join(paragraphs), tokenizer, data) == wanted


def test_a_last_paragraph_that_is_too_long_leaves_the_record_out(tokenizer, data):  # row 1
    data.max_prompt_tokens = 12
    assert encode_prompt(f"Short.\n{words(20)}", tokenizer, data) is None
    assert encode_prompt(words(20), tokenizer, data) is None


def dropped_one_by_one(prompt, tokenizer, data):
    """Whole paragraphs dropped from the start until the rest fits: the definition, which encodes every rest."""
    paragraphs = prompt.split("\n")
    template = build_template(data, tokenizer)
    rests = (template.read("\n".join(paragraphs[start:])).ids for start in range(len(paragraphs)))
    return next((ids for ids in rests if len(ids) <= data.max_prompt_tokens), None)


paragraphs = st.lists(st.lists(st.sampled_from(["kettle", "Wipe", "a", "-", "x."]), max_size=8).map(" ".join), min_size=1)


@given(paragraphs, st.integers(5, 60))
def test_paragraphs_are_dropped_as_if_one_by_one(tokenizer, make_config, texts, most):
    data = make_config().data
    data.max_prompt_tokens = most
    assert encode_prompt("\n".join(texts), tokenizer, data) == dropped_one_by_one("\n".join(texts), tokenizer, data)


def test_dropping_paragraphs_takes_linear_time(tokenizer, data):
    """Of 800 lines, about as much text is encoded as there is, not 800 times as much."""
    read = []

    class Counting:
        def __call__(self, text, **options):
            read.append(len(text))
            return tokenizer(text, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    lines = [f"Line {number}: how do I clean a kettle with a soft cloth?" for number in range(800)]
    ids = encode_prompt("\n".join(lines), Counting(), data)
    assert tokenizer.decode(ids).startswith("Human: Line 79")
    assert sum(read) < 1.2 * len("\n".join(lines))


def test_left_truncation_keeps_the_last_tokens(tokenizer, data):
    data.max_prompt_tokens = 1000
    whole = encode_prompt(words(20), tokenizer, data)
    data.truncation, data.max_prompt_tokens = "left", 9
    assert encode_prompt(words(20), tokenizer, data) == whole[-9:]


def test_drop_leaves_long_prompts_out_of_both_kinds_of_records(tokenizer, data):
    data.truncation, data.max_prompt_tokens = "drop", 12
    long, short, template = f"{words(20)}\nShort?", "Short?", build_template(data, tokenizer)
    demonstrations = encode_demonstrations([Demonstration(long, "x"), Demonstration(short, "y")], template)
    assert [tokenizer.decode(d.response[:-1]) for d in demonstrations] == [" y"]
    for grouped in (False, True):
        elements = encode_comparisons([Comparison(long, "x", "y"), Comparison(short, "z", "w")], template, grouped)
        assert [[tokenizer.decode(a.response[:-1]) for a in pair] for (pair,) in elements] == [[" z", " w"]]


def comparisons(answers, prompts=("Why?",)):
    """All pairs of the answers to each prompt, the first of a pair preferred."""
    return [Comparison(prompt, *pair) for prompt in prompts for pair in combinations(answers, 2)]


def test_grouped_comparisons_read_each_distinct_answer_once(tokenizer, data):  # row 9
    records = comparisons(("a", "b", "c", "d"), ("Why?", "How?"))
    elements = encode_comparisons(records, build_template(data, tokenizer), grouped=True)
    assert [len(element) for element in elements] == [6, 6]
    batch = comparison_batch(elements, tokenizer.pad_token_id, CPU)
    assert batch.rows.ids.size(0) == 8  # 4 answers of each prompt; the same answer to another prompt is another row
    assert batch.weights.tolist() == [pytest.approx(1 / 6)] * 12
    read = [tokenizer.decode(ids[:length]) for ids, length in zip(batch.rows.ids, batch.rows.lengths.tolist(), strict=True)]
    for record, chosen, rejected in zip(records, batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
        assert read[chosen] == f"Human: {record.prompt}\n\nAssistant: {record.chosen}<|endoftext|>"
        assert read[rejected] == f"Human: {record.prompt}\n\nAssistant: {record.rejected}<|endoftext|>"


def test_ungrouped_comparisons_stand_alone(tokenizer, data):
    elements = encode_comparisons(comparisons(("a", "b", "c")), build_template(data, tokenizer), grouped=False)
    batch = comparison_batch(elements, tokenizer.pad_token_id, CPU)
    assert [len(element) for element in elements] == [1, 1, 1]
    assert batch.rows.ids.size(0) == 6
    assert batch.weights.tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.integers(2, 5), min_size=1, max_size=4))
def test_weights_sum_to_one_for_each_element_of_any_size(sizes):  # row 9
    elements = [
        [(Encoded([9], [first]), Encoded([9], [second])) for first, second in combinations(range(10, 10 + size), 2)]
        for size in sizes
    ]
    batch = comparison_batch(elements, PAD, CPU)
    parts = batch.weights.split([len(element) for element in elements])
    assert [part.sum().item() for part in parts] == pytest.approx([1.0] * len(sizes))
    assert batch.rows.ids.size(0) == sum(sizes)
