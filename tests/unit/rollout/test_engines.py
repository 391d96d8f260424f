"""What every rollout engine must do."""

from dataclasses import fields, replace

import pytest
import torch
from support.rollout_compare import disagreements
from support.texts import encode_prompt
from support.tiny_models import PROMPTS, generate, policy_engine, prompts, random_numbers
from support.tiny_tokenizers import CHATML, byte_level
from transformers import GenerationConfig

from rlhf.data.templates import build_template
from rlhf.data.tokens import left_mask, prompt_batch, right_mask
from rlhf.models.forward import response_logprobs
from rlhf.rollout.base import Responses

pytestmark = pytest.mark.rounding


@pytest.fixture(scope="module", params=["hf", "hybrid", "paged"])
def make(make_config, request):
    """Configurations whose rollouts one of the engines makes."""
    return lambda *overrides: make_config(f"rollout={request.param}", *overrides)


@pytest.fixture(scope="module")
def config(make):
    return make("rollout.max_new_tokens=12", "rollout.temperature=0.8")


@pytest.fixture(scope="module")
def engine(config, tokenizer):
    return policy_engine(config, tokenizer)


def plain_greedy(engine, batch, row, tokenizer, **options):
    """The twelve tokens that plain transformers gives a prompt by itself."""
    alone = batch.ids[row : row + 1, -int(batch.lengths[row]) :]
    settings = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, **options
    )
    plain = engine.module.generate(input_ids=alone, attention_mask=torch.ones_like(alone), generation_config=settings)
    return plain[0, alone.size(1) :].tolist()


def test_greedy_equals_plain_transformers(make, engine, tokenizer):
    config = make("rollout.max_new_tokens=12", "rollout.do_sample=false")
    batch = prompts(config, tokenizer)
    responses = generate(engine, batch, random_numbers(config, 3), tokenizer, config.rollout)
    for row, length in enumerate(responses.lengths.tolist()):
        assert responses.tokens[row, :length].tolist() == plain_greedy(engine, batch, row, tokenizer)


def test_a_sample_does_not_depend_on_its_batch(config, engine, tokenizer):
    numbers = random_numbers(config, 3)
    together = generate(engine, prompts(config, tokenizer), numbers, tokenizer, config.rollout)
    for row, text in enumerate(PROMPTS):
        batch, own = prompts(config, tokenizer, [text]), numbers[row : row + 1]
        alone = generate(engine, batch, own, tokenizer, config.rollout)
        of_all = Responses(*(getattr(together, field.name)[row : row + 1] for field in fields(Responses)))
        assert disagreements(engine, batch, own, of_all, alone, config.rollout, tokenizer.eos_token_id) == []


def test_micro_batches_change_nothing(make, engine, tokenizer, config):
    split = make("rollout.max_new_tokens=12", "rollout.temperature=0.8", "rollout.micro_batch_size=1")
    numbers, batch = random_numbers(config, 3), prompts(config, tokenizer)
    whole = generate(engine, batch, numbers, tokenizer, config.rollout)
    parts = generate(engine, batch, numbers, tokenizer, split.rollout)
    assert disagreements(engine, batch, numbers, parts, whole, config.rollout, tokenizer.eos_token_id) == []


def test_the_sampler_reports_the_trainers_log_probabilities(config, engine, tokenizer):  # rows 14, 33
    batch = replace(prompts(config, tokenizer), limits=torch.tensor([3, 12, 7]))  # of what it takes, drawn or not
    responses = generate(engine, batch, random_numbers(config, 3), tokenizer, config.rollout)
    actions = right_mask(responses.lengths, responses.tokens.size(1))
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], 1)
    ids = torch.cat([batch.ids, responses.tokens], 1)
    logprobs, _ = response_logprobs(engine, ids, mask, actions.size(1), config.rollout.temperature)
    assert torch.allclose(logprobs * actions, responses.logprobs, atol=1e-4)


def test_fixed_length_sampling_never_ends_early(make, engine, tokenizer):  # row 15
    config = make("rollout.max_new_tokens=12", "rollout.min_new_tokens=12", "rollout.temperature=3.0")
    responses = generate(engine, prompts(config, tokenizer), random_numbers(config, 3), tokenizer, config.rollout)
    assert responses.lengths.tolist() == [12, 12, 12]
    assert not (responses.tokens[:, :-1] == tokenizer.eos_token_id).any()


def test_a_response_ends_with_its_first_end_of_text(make, engine, tokenizer):
    config = make("rollout.max_new_tokens=24", "rollout.temperature=50.0")
    texts = list(PROMPTS) * 60
    responses = generate(engine, prompts(config, tokenizer, texts), random_numbers(config, 180), tokenizer, config.rollout)
    assert responses.ended.any() and not responses.ended.all()
    for tokens, length, ended in zip(
        responses.tokens.tolist(), responses.lengths.tolist(), responses.ended.tolist(), strict=True
    ):
        assert tokenizer.eos_token_id not in tokens[: length - 1]
        assert ended == (tokens[length - 1] == tokenizer.eos_token_id)


def test_a_response_ends_with_its_turn_or_with_its_text(make):
    """Of a chat template, whichever token of the two comes first; one that must not end has neither."""
    chat = byte_level(CHATML)
    config = make("rollout.max_new_tokens=32", "model.vocab_size=400", "data.template=chat")
    engine, ends = policy_engine(config, chat), build_template(config.data, chat).end_ids
    batch = prompts(config, chat, PROMPTS * 16)
    responses = generate(engine, batch, random_numbers(config, 48), chat, config.rollout)
    seen = set()
    for tokens, length, ended in zip(responses.tokens, responses.lengths.tolist(), responses.ended.tolist(), strict=True):
        found = [token for token in tokens[:length].tolist() if token in ends]
        assert found == (tokens[length - 1 : length].tolist() if ended else [])
        seen.update(found)
    assert seen == set(ends) and len(ends) == 2
    fixed = replace(config.rollout, fixed_length=True)
    responses = generate(engine, batch, random_numbers(config, 48), chat, fixed)
    assert responses.lengths.tolist() == [32] * 48 and not set(responses.tokens.flatten().tolist()) & set(ends)


def test_limits_end_an_answer_whatever_is_drawn(make, engine, tokenizer):
    config = make("rollout.max_new_tokens=12", "rollout.fixed_length=true", "ppo.eos_penalty=null")
    batch = replace(prompts(config, tokenizer), limits=torch.tensor([3, 12, 20]))
    responses = generate(engine, batch, random_numbers(config, 3), tokenizer, config.rollout)
    assert responses.lengths.tolist() == [3, 12, 12] and responses.ended.tolist() == [True, True, False]


def test_the_repetition_penalty_is_that_of_transformers(make, engine, tokenizer):
    config = make("rollout.max_new_tokens=12", "rollout.do_sample=false", "rollout.repetition_penalty=3.0")
    batch = prompts(config, tokenizer)
    responses = generate(engine, batch, random_numbers(config, 3), tokenizer, config.rollout)
    free = replace(config.rollout, repetition_penalty=1.0)
    assert not torch.equal(responses.tokens, generate(engine, batch, random_numbers(config, 3), tokenizer, free).tokens)
    for row, length in enumerate(responses.lengths.tolist()):
        expected = plain_greedy(engine, batch, row, tokenizer, repetition_penalty=3.0)
        assert responses.tokens[row, :length].tolist() == expected


def test_a_stop_text_ends_a_response_however_it_is_cut_into_tokens(make, engine, tokenizer):
    config = make("rollout.max_new_tokens=24", "rollout.temperature=50.0", "rollout.stop=[e, The lamp]")
    texts, numbers = list(PROMPTS) * 20, random_numbers(config, 60)
    batch = prompts(config, tokenizer, texts)
    free = generate(engine, batch, numbers, tokenizer, replace(config.rollout, stop=[]))
    for least in (0, 5):
        responses = generate(
            engine, batch, numbers, tokenizer, replace(config.rollout, stop=["e", "?!"], min_new_tokens=least)
        )
        stopped = 0
        for row, length in enumerate(responses.lengths.tolist()):
            texts = [tokenizer.decode(responses.tokens[row, :end]) for end in range(length + 1)]
            new = texts[length][len(texts[length - 1]) :] if texts[length].startswith(texts[length - 1]) else texts[length]
            by_text = bool(responses.ended[row]) and int(responses.tokens[row, length - 1]) != tokenizer.eos_token_id
            stopped += by_text
            assert not by_text or "e" in new or "?!" in texts[length]
            assert all("e" not in text[len(texts[least]) :] for text in texts[least:length])
            if not least:
                assert responses.tokens[row, :length].tolist() == free.tokens[row, :length].tolist()
        assert stopped > 10


def test_several_responses_to_a_prompt_are_what_so_many_prompts_give(make, config, engine, tokenizer):
    numbers = random_numbers(config, 12)
    ids = [encode_prompt(text, tokenizer, config.data) for text in PROMPTS]
    batch = prompt_batch(ids, list(range(12)), tokenizer.pad_token_id, torch.device("cpu"), copies=4)
    together = generate(engine, batch, numbers, tokenizer, config.rollout)
    apart = generate(engine, replace(batch, copies=1), numbers, tokenizer, config.rollout)
    split = generate(engine, batch, numbers, tokenizer, replace(config.rollout, micro_batch_size=3))
    assert len({tuple(row) for row in together.tokens[:4].tolist()}) == 4
    for other in (apart, split):
        assert disagreements(engine, batch, numbers, together, other, config.rollout, tokenizer.eos_token_id) == []
