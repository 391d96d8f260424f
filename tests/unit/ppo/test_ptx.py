"""The pre-training loss in the actor's updates, against gradients of plain torch."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.rounding import assert_same_gradients
from support.small import SMALL_PPO
from support.tiny_models import built, dataset
from transformers import AutoModelForCausalLM

from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.data.templates import build_template
from rlhf.data.tokens import right_mask
from rlhf.ppo import ptx
from rlhf.ppo import trainer as trainer_module
from rlhf.ppo.ptx import Texts, count_predicted_tokens
from rlhf.runtime.seeds import random_stream

pytestmark = pytest.mark.rounding

CPU = torch.device("cpu")
SMALL = (*SMALL_PPO, "ppo.max_grad_norm=1e9")


def build(config, models, tokenizer):
    loader, _engine, trainer = built(config, models, tokenizer)
    return trainer, trainer.generate_experience(next(iter(loader)))


def first_update(trainer, experience, monkeypatch):
    """The actor's gradient at the end of a rollout's first mini-batch, by name, and the norms before clipping."""
    caught = {}
    finish = trainer_module.optimizer_step

    def look(actor, critic):
        caught.update({n: p.grad.clone() for n, p in actor.module.named_parameters() if p.grad is not None})
        caught["norms"] = finish(actor, critic)
        return caught["norms"]

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "optimizer_step", look)
        trainer.train_minibatch(experience, [5, 1, 6, 2])
    return caught, caught.pop("norms")


def texts_by_hand(config, tokenizer, number, count):
    """The texts of an update, encoded: prompt and response as in fine-tuning, end-of-text, cut to a sequence."""
    limit = config.data.max_prompt_tokens + max(config.data.max_response_tokens, config.rollout.max_new_tokens)
    texts = [
        f"{config.data.prompt_format.format(prompt=d.prompt)} {d.response}" for d in dataset(config).train.demonstrations
    ]
    chosen = random_stream(config.seed, "ptx", number).integers(len(texts), size=count)
    return [tokenizer(texts[i])["input_ids"][: limit - 1] + [tokenizer.eos_token_id] for i in chosen]


def language_model_gradient(place, texts):
    """Mean negative log-likelihood per predicted token, text by text without padding; and its gradient."""
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    total = sum(len(ids) - 1 for ids in texts)
    loss = 0.0
    for ids in texts:
        row = torch.tensor(ids)[None]
        part = F.cross_entropy(model(row).logits[0, :-1], row[0, 1:], reduction="sum") / total
        part.backward()
        loss += float(part.detach())
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_close(first, second):
    assert first.keys() == second.keys()
    assert_same_gradients([first[name] for name in second], list(second.values()))


@pytest.mark.parametrize("micro", (1, 2, 4))
def test_without_advantages_the_gradient_is_that_of_the_texts(  # row 35
    make_config, tokenizer, smooth_models, monkeypatch, micro
):
    config = make_config(*SMALL, "ppo.ptx_coef=0.5", f"ppo.micro_batch_size={micro}")
    trainer, experience = build(config, smooth_models, tokenizer)
    experience = replace(experience, advantages=torch.zeros_like(experience.advantages))
    gradient, norms = first_update(trainer, experience, monkeypatch)
    loss, expected = language_model_gradient(smooth_models[0], texts_by_hand(config, tokenizer, 0, 4))
    assert_close(gradient, {name: 0.5 * grad for name, grad in expected.items()})
    assert norms[0] == pytest.approx(0.5 * float(torch.cat([g.flatten() for g in expected.values()]).norm()), rel=1e-4)
    assert trainer.update_metrics.reduce()["policy/ptx_loss"] == pytest.approx(
        loss, rel=1e-5
    )  # the mean, without the weight


@pytest.mark.parametrize("micro", (1, 4))
def test_the_gradient_is_the_policys_and_the_texts_together(make_config, tokenizer, smooth_models, monkeypatch, micro):
    plain, experience = build(make_config(*SMALL, "ppo.micro_batch_size=4"), smooth_models, tokenizer)
    policy, _ = first_update(plain, experience, monkeypatch)
    assert all(float(g.abs().max()) > 0 for n, g in policy.items() if not n.endswith("k_proj.bias"))
    config = make_config(*SMALL, "ppo.ptx_coef=2.0", f"ppo.micro_batch_size={micro}")
    trainer, same_experience = build(config, smooth_models, tokenizer)
    assert torch.equal(same_experience.responses, experience.responses)
    gradient, _ = first_update(trainer, experience, monkeypatch)
    _, texts = language_model_gradient(smooth_models[0], texts_by_hand(config, tokenizer, 0, 4))
    assert_close(gradient, {name: policy[name] + 2.0 * texts[name] for name in texts})


@pytest.mark.parametrize("zero", ("0", "2", "3"))
def test_policy_and_texts_share_one_step(make_config, tokenizer, smooth_models, monkeypatch, zero):
    sharding = f"zero={zero!r}", "zero.stage3_param_persistence_threshold=0"
    config = make_config(*SMALL, *sharding, "ppo.ptx_coef=0.5", "ppo.micro_batch_size=2", "ppo.eps=1.0e-8")
    trainer, experience = build(config, smooth_models, tokenizer)
    experience = replace(experience, advantages=torch.zeros_like(experience.advantages))
    steps = [engine.global_steps for engine in (trainer.engine.actor, trainer.engine.critic)]
    _, norms = first_update(trainer, experience, monkeypatch)
    assert [e.global_steps - s for e, s in zip((trainer.engine.actor, trainer.engine.critic), steps, strict=True)] == [1, 1]
    _, expected = language_model_gradient(smooth_models[0], texts_by_hand(config, tokenizer, 0, 4))
    assert norms[0] == pytest.approx(0.5 * float(torch.cat([g.flatten() for g in expected.values()]).norm()), rel=1e-4)


def test_every_update_has_other_texts(make_config, tokenizer, models):
    config = make_config(*SMALL, "ppo.ptx_coef=0.5", "ppo.micro_batch_size=2", "ppo.update_epochs=2")
    trainer, experience = build(config, models, tokenizer)
    asked, batches = [], trainer.texts.batches
    trainer.texts.batches = lambda number: asked.append(number) or batches(number)
    losses = []
    for _ in range(2):
        trainer.train_rlhf(experience)
        losses.append(trainer.metrics["policy/ptx_loss"])
        experience = trainer.generate_experience(next(iter(create_prompt_dataloader(config, tokenizer))))
    assert asked == list(range(8))
    assert losses[1] < losses[0]  # it learns them


def rows(batches):
    """The texts of micro-batches, without padding."""
    return [row[:length].tolist() for b in batches for row, length in zip(b.ids, b.lengths.tolist(), strict=True)]


def test_all_ranks_together_take_what_one_would(make_config, tokenizer, monkeypatch):
    config = make_config("ppo.ptx_coef=0.5")
    template = build_template(config.data, tokenizer)
    alone = Texts(config, template, Batches(ranks=1, per_rank=8, micro=4, accumulation=2), CPU)
    shared = Texts(config, template, Batches(ranks=2, per_rank=4, micro=2, accumulation=2), CPU)
    for number in (0, 1, 7):
        batches, count = alone.batches(number)
        assert [b.ids.size(0) for b in batches] == [4, 4]
        whole = rows(batches)
        assert whole == texts_by_hand(config, tokenizer, number, 8)
        assert count == sum(len(ids) - 1 for ids in whole)
        parts = []
        for rank in (0, 1):
            monkeypatch.setattr(ptx, "rank", lambda rank=rank: rank)
            batches, of_all = shared.batches(number)
            assert [b.ids.size(0) for b in batches] == [2, 2] and of_all == count
            parts += rows(batches)
        monkeypatch.undo()
        assert parts == whole
    assert rows(alone.batches(0)[0]) != rows(alone.batches(1)[0])


def test_long_texts_are_cut_to_a_training_sequence(make_config, tokenizer):
    config = make_config(
        "ppo.ptx_coef=0.5", "data.max_prompt_tokens=12", "data.max_response_tokens=10", "rollout.max_new_tokens=14"
    )
    texts = Texts(config, build_template(config.data, tokenizer), Batches(1, 4, 4, 1), CPU)
    lengths = [len(item.response) for item in texts.items]
    assert max(lengths) == 26 and len(lengths) == len(dataset(config).train.demonstrations)
    first = dataset(config).train.demonstrations[0]
    whole = tokenizer(f"{config.data.prompt_format.format(prompt=first.prompt)} {first.response}")["input_ids"]
    assert len(whole) > 26 and texts.items[0].response == whole[:26]  # cut, so it does not end
    for item in texts.items:
        assert not item.prompt
        assert len(item.response) == 26 or item.response[-1] == tokenizer.eos_token_id


def test_all_tokens_but_the_first_are_predicted(make_config, tokenizer):
    texts = Texts(make_config("ppo.ptx_coef=0.5"), build_template(make_config().data, tokenizer), Batches(1, 4, 4, 1), CPU)
    (batch,), count = texts.batches(3)
    mask = count_predicted_tokens(batch)
    assert mask.shape == (4, batch.ids.size(1) - 1) and float(mask.sum()) == count
    assert torch.equal(mask, right_mask(batch.lengths - 1, mask.size(1)))


def test_texts_of_your_own(make_config, tokenizer, tmp_path):
    lines = ["The kettle is on the stove.", "", "A lamp needs a bulb."]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"story": line, "id": 1}) for line in lines))
    kept = [tokenizer(line)["input_ids"] + [tokenizer.eos_token_id] for line in lines if line]
    for name, column in (("texts.txt", "text"), ("texts.jsonl", "story")):
        place = f"ppo.ptx.file={tmp_path / name}"
        config = make_config("ppo.ptx_coef=0.5", "ppo.ptx.source=file", place, f"ppo.ptx.column={column}")
        texts = Texts(config, build_template(config.data, tokenizer), Batches(1, 4, 4, 1), CPU)
        assert [item.response for item in texts.items] == kept
    config = make_config("ppo.ptx_coef=0.5", "ppo.ptx.source=file", f"ppo.ptx.file={tmp_path / 'texts.jsonl'}")
    with pytest.raises(ConfigError, match=r"ppo\.ptx\.column=text.*story"):
        Texts(config, build_template(config.data, tokenizer), Batches(1, 4, 4, 1), CPU)


def test_without_a_weight_no_text_is_read(make_config, tokenizer, models):
    trainer, _ = build(make_config(*SMALL), models, tokenizer)
    assert trainer.texts is None
    assert trainer.engine.actor.gradient_accumulation_steps() == trainer.engine.batches.accumulation
