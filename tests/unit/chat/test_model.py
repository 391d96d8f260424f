"""Answers of a loaded model: the same for the same seed however they are read, and those of plain transformers."""

from dataclasses import replace

import pytest
import torch
from support.quick import mark_slow
from transformers import AutoModelForCausalLM

from rlhf.catalog.families import FAMILIES
from rlhf.chat.model import ChatModel, Draw, TooLong
from rlhf.data.dataset import Message
from rlhf.experiment.policies import find_policy
from rlhf.models.families import build_hf_config

TALK = (Message("user", "How do I clean a kettle?"), Message("assistant", "Wipe it."), Message("user", "Why?"))


@pytest.fixture(scope="module")
def model(make_config, models):
    return ChatModel(find_policy(models[0], "chat"), make_config())


def test_a_seed_gives_the_same_answer_streamed_or_not(model, make_config):
    rollout = make_config("rollout.max_new_tokens=12").rollout
    first = model.answer(TALK[:1], rollout, Draw(3))
    pieces = list(first)
    assert "".join(pieces) == first.text == model.answer(TALK[:1], rollout, Draw(3)).finish().text
    longer = model.answer(TALK[:1], replace(rollout, max_new_tokens=20), Draw(3)).finish()
    assert longer.tokens[:12] == first.tokens
    others = [model.answer(TALK[:1], rollout, draw).finish() for draw in (Draw(4), Draw(3, 1), Draw(3, 0, 1))]
    assert len({first.text, *(other.text for other in others)}) == 4


def test_an_answer_that_nobody_reads_on_keeps_what_was_written(model, make_config):
    answer = model.answer(TALK[:1], make_config("rollout.max_new_tokens=12").rollout, Draw(0))
    for _ in answer:
        break
    assert 0 < len(answer.tokens) < 12 and not answer.ended
    assert answer.text == model.template.decode(answer.tokens)


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(model, make_config):
    rollout = make_config("rollout.max_new_tokens=8").rollout
    system, long = Message("system", "Be brief."), TALK[:2] * 40
    whole = model.answer((system, *TALK), rollout, Draw(0))
    assert whole.dropped == 0
    answer = model.answer((system, *long, TALK[2]), rollout, Draw(0))
    assert 0 < answer.dropped < 41 and answer.prompt_tokens + 8 <= model.positions
    kept = (system, *long[2 * answer.dropped :], TALK[2])
    assert answer.finish().text == model.answer(kept, rollout, Draw(0)).finish().text
    with pytest.raises(TooLong, match=f"the model reads {model.positions}"):
        model.answer((*long, Message("user", "kettle! " * model.positions)), rollout, Draw(0))


@pytest.mark.parametrize("family", mark_slow(FAMILIES, quick=("opt",)))
def test_the_likeliest_tokens_are_those_of_transformers(family, make_config, tokenizer, tmp_path):
    name = family.replace("_", "-")
    config = make_config(f"model={name}-tiny", "rollout.do_sample=false", "rollout.max_new_tokens=24")
    settings = build_hf_config(config.model)
    for window in ("sliding_window", "window_size"):
        if getattr(settings, window, None):
            setattr(settings, window, 16)
    torch.manual_seed(0)
    settings.initializer_range = 0.1  # tells tokens apart
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ChatModel(find_policy(str(tmp_path), "chat"), config)
    answer = model.answer(TALK, config.rollout, Draw(0)).finish()
    ids = torch.tensor([model.template.read(TALK).ids])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = plain.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=model.ends.tolist())
    assert answer.tokens == expected[0, ids.size(1) :].tolist()
