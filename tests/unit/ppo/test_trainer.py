"""The documented API, on models on disk, with the real engines."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.small import SMALL_PPO
from support.tiny_models import assert_same_update, dataset, first_step

from rlhf import DeepSpeedPPOTrainer, DeepSpeedRLHFEngine
from rlhf.catalog.stage import check_metrics
from rlhf.config.errors import ConfigError
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.models.tokenizer import train_tokenizer
from rlhf.ppo.report import describe_speed

pytestmark = pytest.mark.rounding

SMALL = (*SMALL_PPO, "ppo.update_epochs=2")

ONE_UPDATE = ("ppo.update_epochs=1", "ppo.batch_size=8")


def build(make_config, models, tokenizer, *overrides):
    args = make_config(*SMALL, *overrides)
    loader = create_prompt_dataloader(args, tokenizer)
    actor, reward = models
    engine = DeepSpeedRLHFEngine(
        actor_model_name_or_path=actor,
        critic_model_name_or_path=reward,
        tokenizer=tokenizer,
        num_total_iters=len(loader),
        args=args,
    )
    return args, loader, engine, DeepSpeedPPOTrainer(engine=engine, args=args)


def test_the_documented_loop(make_config, models, tokenizer):
    args, prompt_train_dataloader, engine, trainer = build(make_config, models, tokenizer)
    before = {name: p.detach().clone() for name, p in engine.actor.module.named_parameters()}
    reference = {name: p.detach().clone() for name, p in engine.ref.module.named_parameters()}
    for prompt_batch in prompt_train_dataloader:
        out = trainer.generate_experience(prompt_batch)
        actor_loss, critic_loss = trainer.train_rlhf(out)
        check_metrics("ppo", trainer.metrics | describe_speed(args, out, trainer.clock))
    assert isinstance(actor_loss, float) and critic_loss > 0
    assert any(not torch.equal(before[name], p) for name, p in engine.actor.module.named_parameters())
    assert all(torch.equal(reference[name], p) for name, p in engine.ref.module.named_parameters())
    assert trainer.iteration == 2 and trainer.updates == 2 * 2 * 2


def test_experience_is_consistent(make_config, models, tokenizer):
    _args, loader, _engine, trainer = build(
        make_config, models, tokenizer, "ppo.whiten_advantages=false", "ppo.eos_penalty=null"
    )
    out = trainer.generate_experience(next(iter(loader)))
    assert torch.equal(out.logprobs, out.reference_logprobs)  # the actor has not moved yet
    assert trainer.metrics["kl/sequence"] == 0.0
    assert out.rewards.sum(1).tolist() == pytest.approx(out.scores.tolist())  # no KL: the score alone
    last = out.mask.sum(1) - 1
    assert torch.equal(out.rewards.nonzero()[:, 1], last)  # on the last action, row 17
    assert (out.advantages[out.mask == 0] == 0).all() and (out.values[out.mask == 0] == 0).all()
    assert torch.allclose(out.returns, (out.advantages + out.values) * out.mask)


def test_advantages_are_white_over_the_rollout(make_config, models, tokenizer):  # row 22
    *_, loader, _engine, trainer = build(make_config, models, tokenizer)
    out = trainer.generate_experience(next(iter(loader)))
    kept = out.advantages[out.mask == 1].double()
    assert kept.mean().item() == pytest.approx(0, abs=1e-5)
    assert kept.std().item() == pytest.approx(1, rel=1e-4)


def test_reference_log_probabilities_have_the_temperature(make_config, models, tokenizer):  # row 14
    *_, trainer = build(make_config, models, tokenizer, "rollout.temperature=0.5")
    loader = create_prompt_dataloader(trainer.args, tokenizer)
    out = trainer.generate_experience(next(iter(loader)))
    assert torch.allclose(out.logprobs, out.reference_logprobs, atol=1e-6)
    assert trainer.metrics["policy/sampler_gap_max"] < 1e-4
    trainer.train_rlhf(out)
    assert trainer.metrics["policy/ratio_first"] < 1e-3  # new ones have it too


def test_a_wrong_old_log_probability_stops_the_run(make_config, models, tokenizer):  # row 24
    *_, loader, _engine, trainer = build(make_config, models, tokenizer, "ppo.batch_size=8")
    out = trainer.generate_experience(next(iter(loader)))
    out.logprobs[3, 0] += 0.01
    with pytest.raises(RuntimeError, match="first mini-batch"):
        trainer.train_rlhf(out)


def spoil(engine, value):
    """Every score of the reward model becomes NaN or infinite."""
    with torch.no_grad():
        engine.reward.module.classifier.score.weight.fill_(value)


def copies(*engines):
    return [parameter.detach().clone() for engine in engines for parameter in engine.module.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_rollout_whose_score_is_not_finite_is_left_out_and_kept(make_config, models, tokenizer, tmp_path, value):
    args, loader, engine, _ = build(make_config, models, tokenizer, "ppo.max_nonfinite=3")
    trainer = DeepSpeedPPOTrainer(engine=engine, args=args, inspection=tmp_path / "inspection")
    spoil(engine, value)
    before = copies(engine.actor, engine.critic)
    batch = next(iter(loader))
    out = trainer.generate_experience(batch)
    losses = trainer.train_rlhf(out)
    assert all(map(math.isnan, losses))
    assert all(torch.equal(*pair) for pair in zip(copies(engine.actor, engine.critic), before, strict=True))
    metrics = trainer.metrics | describe_speed(args, out, trainer.clock)
    check_metrics("ppo", metrics)
    assert metrics["train/nonfinite"] == 1.0 and all(map(math.isfinite, metrics.values()))
    assert not {"reward/mean", "policy/loss", "value/loss"} & set(metrics)
    kept = load_file(tmp_path / "inspection" / "step-1-rank-0.safetensors")
    assert {"prompts", "responses", "mask", "logprobs", "values", "scores", "advantages"} <= set(kept)
    assert torch.equal(kept["responses"], out.responses) and not torch.isfinite(kept["scores"]).any()
    assert json.loads((tmp_path / "inspection" / "step-1.json").read_text()) == {"step": 1, "problem": "a score"}
    assert (trainer.iteration, trainer.updates, trainer.kl.coef) == (1, 0, args.ppo.kl_coef)
    trainer.train_rlhf(trainer.generate_experience(batch))  # the second in a row, and the third ends the run
    with pytest.raises(FloatingPointError, match="a score is not finite for 3 steps in a row"):
        trainer.train_rlhf(trainer.generate_experience(batch))


def test_the_last_rollout_that_is_tolerated_stops_the_run(make_config, models, tokenizer, tmp_path):
    args, loader, engine, _ = build(make_config, models, tokenizer, "ppo.max_nonfinite=1")
    trainer = DeepSpeedPPOTrainer(engine=engine, args=args, inspection=tmp_path)
    spoil(engine, float("nan"))
    out = trainer.generate_experience(next(iter(loader)))
    with pytest.raises(FloatingPointError, match=r"a score is not finite at step 1 .*lower the learning rate"):
        trainer.train_rlhf(out)
    assert (tmp_path / "step-1-rank-0.safetensors").is_file()


def test_a_finite_rollout_in_between_starts_the_count_anew(make_config, models, tokenizer, tmp_path):
    args, loader, engine, _ = build(make_config, models, tokenizer, "ppo.max_nonfinite=2")
    trainer = DeepSpeedPPOTrainer(engine=engine, args=args, inspection=tmp_path)
    batch, head = next(iter(loader)), engine.reward.module.classifier.score.weight
    good, counted = head.detach().clone(), []
    for bad in (True, False, True):
        with torch.no_grad():
            head.copy_(torch.full_like(good, math.nan) if bad else good)
        losses = trainer.train_rlhf(trainer.generate_experience(batch))
        counted.append(trainer.metrics["train/nonfinite"])
        assert any(map(math.isnan, losses)) == bad
    assert counted == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("logprobs", "a log-probability"),
        ("reference_logprobs", "a reference log-probability"),
        ("values", "a value"),
        ("scores", "a score"),
    ],
)
def test_whatever_is_not_finite_in_a_rollout_is_named(make_config, models, tokenizer, tmp_path, column, problem):
    args, loader, engine, _ = build(make_config, models, tokenizer)
    trainer = DeepSpeedPPOTrainer(engine=engine, args=args, inspection=tmp_path)
    out = trainer.generate_experience(next(iter(loader)))
    getattr(out, column).view(-1)[3] = math.nan
    assert all(map(math.isnan, trainer.train_rlhf(out)))
    assert json.loads((tmp_path / "step-1.json").read_text())["problem"] == problem


def test_the_end_of_text_action_can_be_left_out(make_config, models, tokenizer):
    changes = ("rollout.temperature=50.0", "rollout.max_new_tokens=48", "ppo.rollout_batch_size=128", "ppo.batch_size=128")
    *_, loader, _engine, trainer = build(make_config, models, tokenizer, *changes, "ppo.train_on_eos=false")
    out = trainer.generate_experience(next(iter(loader)))
    difference = (out.mask - out.loss_mask).sum(1)
    ended = (out.responses * out.mask == tokenizer.eos_token_id).any(1)
    assert ended.any() and not ended.all()
    assert torch.equal(difference, ended.long())


def test_micro_batches_do_not_change_the_update(make_config, smooth_models, tokenizer):  # row 30
    """Of one rollout: the next one's tokens are drawn by weights that rounding has moved."""
    options = *SMALL, *ONE_UPDATE, "rollout.max_new_tokens=12", "ppo.max_grad_norm=1e9"
    steps = [
        first_step(make_config(*options, f"ppo.micro_batch_size={micro}"), smooth_models, tokenizer) for micro in (4, 1)
    ]
    assert_same_update(*steps)
    told = [
        {
            name: value
            for name, value in step.metrics.items()
            if not name.startswith(("policy/sampler", "policy/ratio_first"))
        }
        for step in steps
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-3, abs=1e-4)


def test_deepspeed_chat_reproduces_its_formulas(make_config, models, tokenizer):
    """Its token rewards, advantages and losses, computed here by loops from the description of its trainer."""
    args, loader, _engine, trainer = build(
        make_config, models, tokenizer, "ppo=deepspeed-chat", "rollout.do_sample=false", *SMALL, *ONE_UPDATE
    )
    out = trainer.generate_experience(next(iter(loader)))
    kl_ctl, gamma, lam, clip = 0.1, 1.0, 0.95, 5.0
    for row in range(out.mask.size(0)):
        length = int(out.mask[row].sum())
        kl = (out.logprobs - out.reference_logprobs)[row, :length]
        rewards = -kl_ctl * kl
        rewards[-1] += out.scores[row].clamp(-clip, clip)
        values, advantage, expected = out.values[row, :length], 0.0, []
        for t in reversed(range(length)):
            after = values[t + 1] if t + 1 < length else 0.0
            advantage = rewards[t] + gamma * after - values[t] + gamma * lam * advantage
            expected.append(advantage)
        expected = torch.stack(expected[::-1])
        assert torch.allclose(out.advantages[row, :length], expected, atol=1e-5)
        assert torch.allclose(out.returns[row, :length], expected + values, atol=1e-5)
    # One update per rollout: the ratio is 1, and the losses are the unclipped ones.
    mask = out.loss_mask
    actor_loss, critic_loss = trainer.train_rlhf(out)
    assert actor_loss == pytest.approx(float((-out.advantages * mask).sum() / mask.sum()), abs=1e-4)
    assert critic_loss == pytest.approx(float((0.5 * (out.values - out.returns) ** 2 * mask).sum() / mask.sum()), rel=1e-3)
    assert (args.ppo.kl_coef, args.ppo.reward_clip, args.ppo.clip_range, args.ppo.value_clip_range) == (0.1, 5.0, 0.2, 0.2)


def test_the_critic_starts_from_the_reward_model_and_its_bias(make_config, models, tokenizer, tmp_path):  # rows 10, 11
    actor, reward = models
    changed = tmp_path / "reward"
    changed.mkdir()
    from pathlib import Path

    for file in Path(reward).iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    settings = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(settings | {"reward_bias": 0.75}))
    plain = build(make_config, models, tokenizer)
    biased = build(make_config, (actor, str(changed)), tokenizer)
    outs = [trainer.generate_experience(next(iter(loader))) for _, loader, _, trainer in (plain, biased)]
    assert torch.allclose(outs[0].scores - 0.75, outs[1].scores, atol=1e-6)
    assert torch.allclose((outs[0].values - 0.75) * outs[0].mask, outs[1].values, atol=1e-6)


def test_the_critic_must_share_the_actors_tokenizer(make_config, models, tokenizer, tmp_path):
    args = make_config(*SMALL)
    other = train_tokenizer(list(dataset(args).train.prompts[:50]), 300)
    with pytest.raises(ConfigError, match="tokenizer is not the actor"):
        DeepSpeedRLHFEngine(
            actor_model_name_or_path=models[0],
            critic_model_name_or_path=models[1],
            tokenizer=other,
            num_total_iters=1,
            args=args,
        )


def test_dropout_is_off_in_all_models(make_config, models, tokenizer):  # row 13
    *_, engine, _trainer = build(make_config, models, tokenizer)
    for model in (engine.actor, engine.critic):
        model.train()
        assert model.module.config.dropout == 0.0 and model.module.config.attention_dropout == 0.0
