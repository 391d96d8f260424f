"""A reward model of another family, with a tokenizer of its own."""

from dataclasses import asdict

import pytest
import torch
from support.small import SMALL_PPO
from support.texts import encode_prompt, encode_response
from support.tiny_models import PROMPTS, built, prompts
from support.tiny_tokenizers import CHATML, LLAMA2, byte_level, sentencepiece
from transformers import AutoModelForSequenceClassification

from rlhf import DeepSpeedRLHFEngine
from rlhf.config.errors import ConfigError
from rlhf.data.tokens import left_mask
from rlhf.models.load import new_policy, new_scorer
from rlhf.models.tokenizer import have_same_vocabulary, tokenizer_corpus, train_tokenizer
from rlhf.runtime.distributed import start

SMALL = (*SMALL_PPO, "reward_model=gpt2-tiny", "reward_model.vocab_size=400")
ANSWERS = ("Use warm water, then let it dry.", "Ask a friend who has done it before.", "It depends.")


@pytest.fixture(scope="module")
def other(make_config, demo_data):
    """A second tokenizer, with fewer and other tokens."""
    return train_tokenizer(tokenizer_corpus(make_config(), demo_data)[:500], 400)


def save(directory, model, tokenizer):
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def reward_model(directory, config, other, **settings):
    """A random reward model on disk, of the configuration's shape."""
    start(config)
    model = new_scorer(config.reward_model, config, other, config.zero, 0.0).classifier
    for name, value in settings.items():
        setattr(model.config, name, value)
    return save(directory, model, other)


@pytest.fixture(scope="module")
def models(make_config, tokenizer, other, tmp_path_factory):
    """An opt-tiny actor and a gpt2-tiny reward model, whose bias and scale are not the usual ones."""
    place, config = tmp_path_factory.mktemp("models"), make_config(*SMALL)
    start(config)
    actor = save(place / "actor", new_policy(config.model, config, tokenizer, config.zero, 0.0), tokenizer)
    return actor, reward_model(place / "reward", config, other, reward_bias=0.25, reward_scale=2.0)


def rollout(config, tokenizer, answers, ended):
    """Prompts on the left, answers on the right, as the actor's tokens with padding between and around them."""
    batch = prompts(config, tokenizer)
    encoded = [
        tokenizer(" " + text)["input_ids"] + [tokenizer.eos_token_id] * done
        for text, done in zip(answers, ended, strict=True)
    ]
    width = max(map(len, encoded))
    responses = torch.tensor([ids + [0] * (width - len(ids)) for ids in encoded])
    actions = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in encoded])
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], dim=1)
    return torch.cat([batch.ids, responses], dim=1), mask, width, torch.tensor(ended)


def score_of(place, ids):
    """The score of one sequence, without padding, by plain transformers, which reads the last token."""
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    with torch.no_grad():
        return float((model(torch.tensor(ids)[None]).logits[0, 0] - 0.25) / 2.0)


def expected(place, config, other, ended, answers=ANSWERS):
    """Scores of the texts themselves in the reward model's tokens, encoded as it was trained."""
    sequences = []
    for prompt, answer, done in zip(PROMPTS, answers, ended, strict=True):
        response = encode_response(answer, other, config.data)
        assert response[-1] == other.eos_token_id
        sequences.append(encode_prompt(prompt, other, config.data) + (response if done else response[:-1]))
    return [score_of(place, ids) for ids in sequences]


@pytest.mark.parametrize("ended", ((True, True, True), (True, False, True), (False, False, False)))
def test_the_text_is_scored_in_the_reward_models_own_tokens(make_config, models, tokenizer, other, ended):
    """At its end-of-text, which only a response that ended has."""
    config = make_config(*SMALL, "ppo.critic=actor")
    _, engine, _ = built(config, models, tokenizer)
    assert have_same_vocabulary(engine.reward_template.tokenizer, other) and not have_same_vocabulary(
        engine.reward_template.tokenizer, tokenizer
    )
    with torch.no_grad():
        scores = engine.scorer_of("reward")(*rollout(config, tokenizer, ANSWERS, ended))
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected(models[1], config, other, ended), abs=1e-5)


def test_the_end_of_text_counts(make_config, models, tokenizer):
    config = make_config(*SMALL, "ppo.critic=actor")
    _, engine, _ = built(config, models, tokenizer)
    with torch.no_grad():
        closed, open_ = (
            engine.scorer_of("reward")(*rollout(config, tokenizer, ANSWERS, (done,) * 3)) for done in (True, False)
        )
    assert float((closed - open_).abs().min()) > 1e-3


def test_a_response_of_nothing_but_end_of_text(make_config, models, tokenizer, other):
    config = make_config(*SMALL, "ppo.critic=actor")
    _, engine, _ = built(config, models, tokenizer)
    batch = prompts(config, tokenizer)
    ids = torch.cat([batch.ids, torch.full((3, 1), tokenizer.eos_token_id)], dim=1)
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), torch.ones(3, 1, dtype=torch.long)], dim=1)
    with torch.no_grad():
        scores = engine.scorer_of("reward")(ids, mask, 1, torch.ones(3, dtype=torch.bool))
    assert scores.tolist() == pytest.approx(expected(models[1], config, other, (True,) * 3, ("",) * 3), abs=1e-5)


def test_a_rollout_is_scored_by_its_text(make_config, models, tokenizer, other):
    config = make_config(*SMALL, "ppo.critic=actor", "ppo.micro_batch_size=2")
    loader, _, trainer = built(config, models, tokenizer)
    out = trainer.generate_experience(next(iter(loader)))
    for row in range(8):
        question = tokenizer.decode(out.prompts[row][out.prompt_mask[row].bool()])
        actions = out.responses[row][out.mask[row].bool()].tolist()
        done = actions[-1] == tokenizer.eos_token_id
        answer = tokenizer.decode(actions[: len(actions) - done], skip_special_tokens=True).strip()
        ids = other(question)["input_ids"] + other(" " + answer)["input_ids"] + [other.eos_token_id] * done
        assert float(out.scores[row]) == pytest.approx(score_of(models[1], ids), abs=1e-5)


def test_a_reward_model_of_another_chat_template_reads_the_record(make_config, tmp_path):
    """As plain transformers makes it of the messages, by the reward model's own tokenizer; another template alone is enough
    to be read anew."""
    chat, talk = byte_level(CHATML), ("data.template=chat", "data.demo.turns=2", "data.max_prompt_tokens=150")
    for own in (sentencepiece("first", LLAMA2), byte_level(CHATML.replace("\n", ":\n"))):
        config = make_config(*SMALL, *talk, "ppo.critic=actor", "reward_model.vocab_size=430", f"output_root={tmp_path}")
        actor = save(tmp_path / "actor", new_policy(config.model, config, chat, config.zero, 0.0), chat)
        place = reward_model(tmp_path / f"reward {len(own)}", config, own, reward_bias=0.25, reward_scale=2.0)
        loader, engine, trainer = built(config, (actor, place), chat)
        batch = next(iter(loader))
        out, ends = trainer.generate_experience(batch), engine.template.end_ids
        for row in range(8):
            actions = out.responses[row][out.mask[row].bool()].tolist()
            text = chat.decode([token for token in actions if token not in ends], skip_special_tokens=True)
            messages = [asdict(message) for message in batch.records[row].text]
            messages.append({"role": "assistant", "content": text})
            ids = own.apply_chat_template(messages)["input_ids"]
            end = len(ids) - ids[::-1].index(engine.reward_template.end_ids[0])
            ids = ids[: end if actions[-1] in ends else end - 1]
            assert float(out.scores[row]) == pytest.approx(score_of(place, ids), abs=1e-5)


def test_a_critic_that_cannot_read_the_actors_tokens_is_refused(make_config, models, tokenizer):
    for start_from in ("reward", models[1]):
        config = make_config(*SMALL, f"ppo.critic={start_from}")
        with pytest.raises(ConfigError, match=r"^ppo\.critic=.*tokenizer is not the actor's.*ppo\.critic=actor") as caught:
            DeepSpeedRLHFEngine(*models, tokenizer, 1, config)
        assert "\n" not in str(caught.value)


def test_a_critic_may_start_from_the_actor(make_config, models, tokenizer):
    config = make_config(*SMALL, "ppo.critic=actor")
    loader, engine, trainer = built(config, models, tokenizer)
    body = engine.actor.module.model.state_dict()
    started = engine.critic.module.classifier
    assert type(started).__name__ == "OPTForSequenceClassification"
    assert all(torch.equal(weight, body[name]) for name, weight in started.model.state_dict().items())
    assert started.score.weight.shape == (1, 64) and started.score.weight.std().item() == pytest.approx(65**-0.5, rel=0.3)
    judge = [parameter.detach().clone() for parameter in engine.reward.module.parameters()]
    before = {name: p.detach().clone() for name, p in engine.critic.module.named_parameters()}
    for batch in loader:
        out = trainer.generate_experience(batch)
        actor_loss, critic_loss = trainer.train_rlhf(out)
        assert torch.isfinite(torch.tensor([actor_loss, critic_loss])).all() and out.values.any()
    assert trainer.metrics["train/nonfinite"] == 0
    assert any(not torch.equal(before[name], p) for name, p in engine.critic.module.named_parameters())
    assert all(torch.equal(old, p) for old, p in zip(judge, engine.reward.module.parameters(), strict=True))


def test_a_critic_may_start_from_a_third_model(make_config, models, tokenizer, tmp_path):
    config = make_config(*SMALL, "reward_model=llama-tiny", "reward_model.vocab_size=768")
    third = reward_model(tmp_path / "critic", config, tokenizer, reward_bias=0.5)
    config = make_config(*SMALL, f"ppo.critic={third}")
    loader, engine, trainer = built(config, models, tokenizer)
    assert type(engine.critic.module.classifier).__name__ == "LlamaForSequenceClassification"
    assert type(engine.reward.module.classifier).__name__ == "GPT2ForSequenceClassification"
    out = trainer.generate_experience(next(iter(loader)))
    trainer.train_rlhf(out)
    assert trainer.metrics["train/nonfinite"] == 0


@pytest.fixture
def narrow(make_config, tokenizer, other, tmp_path):
    """A reward model with as many positions as the actor's sequences have tokens: in its own there are more."""
    lengths = "data.max_prompt_tokens=28", "data.max_response_tokens=8", "data.truncation=left"
    config = make_config(*SMALL, *lengths, "reward_model.max_position_embeddings=36", "ppo.critic=actor")
    start(config)
    actor = save(tmp_path / "actor", new_policy(config.model, config, tokenizer, config.zero, 0.0), tokenizer)
    return config, (actor, reward_model(tmp_path / "reward", config, other, reward_bias=0.25, reward_scale=2.0))


def test_few_positions_cut_the_prompts_beginning(narrow, tokenizer, other):
    config, models = narrow
    _, engine, _ = built(config, models, tokenizer)
    answers = ("Warm water and a soft cloth, then air for a day.", "Ask.", "A little at a time, and with care.")
    question = [other(config.data.prompt_format.format(prompt=prompt))["input_ids"] for prompt in PROMPTS]
    reply = [other(" " + text)["input_ids"] + [other.eos_token_id] for text in answers]
    whole = [q + r for q, r in zip(question, reply, strict=True)]
    assert [len(ids) > 36 for ids in whole] == [True, False, True] and all(len(r) < 36 for r in reply)
    with torch.no_grad():
        scores = engine.scorer_of("reward")(*rollout(config, tokenizer, answers, (True,) * 3))
    assert scores.tolist() == pytest.approx([score_of(models[1], ids[-36:]) for ids in whole], abs=1e-5)


@pytest.mark.parametrize("length", (36, 50))
def test_a_response_that_fills_all_positions_leaves_no_prompt(narrow, tokenizer, other, length):
    config, models = narrow
    _, engine, _ = built(config, models, tokenizer)
    text = "q" * 80
    while len(other(" " + text)["input_ids"]) >= length:
        text = text[:-1]
    reply = other(" " + text)["input_ids"] + [other.eos_token_id]
    assert len(reply) == length
    with torch.no_grad():
        scores = engine.scorer_of("reward")(*rollout(config, tokenizer, (text, "Ask.", "Yes."), (True,) * 3))
    assert float(scores[0]) == pytest.approx(score_of(models[1], reply[-36:]), abs=1e-5)
