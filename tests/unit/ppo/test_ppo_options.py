"""Options of PPO: penalties, fixed lengths, normalised rewards, and passes with or without checkpointing and dropout."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from support.small import SMALL_PPO
from support.texts import encode_demonstrations
from support.tiny_models import (
    assert_same_update,
    built,
    dataset,
    first_step,
    generate,
    policy_engine,
    prompts,
    random_numbers,
    save_models,
)
from transformers import AutoModelForSequenceClassification

from rlhf.data.templates import build_template
from rlhf.data.tokens import left_mask, right_mask, sequence_batch
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.launch.worker import run_rank
from rlhf.models.forward import response_values
from rlhf.models.heads import last_token, model_inputs
from rlhf.models.load import load_scorer
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.ppo.report import describe_rollout
from rlhf.rollout.base import Responses

pytestmark = pytest.mark.rounding


LENGTHS, ENDED = (3, 8, 5), (True, False, False)


def responses(tokenizer):
    """A response that ended after 3 tokens, one that reached the limit of 8, and one that stopped at 5 without an end."""
    tokens = torch.randint(2, 700, (3, 8), generator=torch.Generator().manual_seed(2))
    tokens[0, 2] = tokenizer.eos_token_id
    lengths = torch.tensor(LENGTHS)
    return Responses(tokens, lengths, torch.tensor(ENDED), torch.zeros(3, 8))


PENALTIES = (
    ("ppo.eos_penalty=null", lambda score, ended: score),
    ("ppo.eos_penalty=-1.5", lambda score, ended: score if ended else score - 1.5),  # these scores are not normalised
    ("ppo.eos_penalty_mode=replace", lambda score, ended: score if ended else -1.0),
    ("ppo.eos_penalty_mode=subtract", lambda score, ended: score if ended else score - 0.5),
    ("ppo.reward_clip=0.01", lambda score, ended: max(-0.01, min(0.01, score)) - (0.0 if ended else 1.0)),
)


@pytest.mark.parametrize("length_penalty", (0.0, 0.125, -0.25))
@pytest.mark.parametrize(("option", "by_hand"), PENALTIES)
@torch.no_grad()
def test_length_and_end_of_text_penalties(make_config, tokenizer, models, option, by_hand, length_penalty):
    """The length penalty comes on top of whatever becomes of a score, for every token, end-of-text included."""
    subtract = ("ppo.eos_penalty=0.5",) if "subtract" in option else ()
    more = (f"ppo.length_penalty={length_penalty}", "ppo.whiten_advantages=false", "ppo.kl_coef=0.3")
    config = make_config(*SMALL_PPO, option, *subtract, *more)
    _, _, trainer = built(config, models, tokenizer)
    given = responses(tokenizer)
    experience, shaped = trainer.make_experience(prompts(config, tokenizer), given)
    scores = experience.scores.tolist()
    assert min(map(abs, scores)) > 0.01  # the clip cuts them all
    expected = [
        by_hand(score, ended) - length_penalty * length for score, ended, length in zip(scores, ENDED, LENGTHS, strict=True)
    ]
    assert shaped.tolist() == pytest.approx(expected, abs=1e-6)
    for row, length in enumerate(LENGTHS):  # policy and reference agree: no KL, all reward is on the last token
        assert experience.rewards[row].tolist() == pytest.approx(
            [0.0] * (length - 1) + [expected[row]] + [0.0] * (8 - length), abs=1e-6
        )
    metrics = describe_rollout(experience, given, shaped, 0.3)
    assert metrics["reward/mean"] == pytest.approx(sum(scores) / 3, abs=1e-6)  # as the reward model gave them
    assert metrics["reward/shaped"] == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_responses_of_fixed_length_have_no_end_of_text(make_config, tokenizer):
    changes = "rollout.temperature=50.0", "rollout.max_new_tokens=24"
    config = make_config(*changes)
    engine = policy_engine(config, tokenizer)
    texts = [d.prompt for d in dataset(config).train.demonstrations[:96]]
    batch, random = prompts(config, tokenizer, texts), random_numbers(config, len(texts))
    free = generate(engine, batch, random, tokenizer, config.rollout)
    assert free.ended.any() and int(free.lengths.min()) < 24
    fixed = generate(engine, batch, random, tokenizer, make_config(*changes, "rollout.fixed_length=true").rollout)
    assert fixed.tokens.shape == (96, 24) and (fixed.lengths == 24).all()
    assert not (fixed.tokens == tokenizer.eos_token_id).any() and not fixed.ended.any()


@pytest.mark.parametrize("greedy", (False, True))
def test_a_rollout_of_fixed_length_trains(make_config, tokenizer, models, greedy):
    """Log-probabilities are those of the whole distribution, end-of-text included."""
    config = make_config(
        *SMALL_PPO, "rollout.fixed_length=true", "ppo.eos_penalty=null", f"rollout.do_sample={str(not greedy).lower()}"
    )
    loader, _, trainer = built(config, models, tokenizer)
    out = trainer.generate_experience(next(iter(loader)))
    assert (out.mask == 1).all() and out.mask.shape == (8, 8)
    assert trainer.metrics["length/response"] == 8.0 and trainer.metrics["length/ended"] == 0.0
    assert trainer.metrics["policy/sampler_gap_max"] < 1e-4
    trainer.train_rlhf(out)
    assert trainer.metrics["policy/ratio_first"] < 1e-3


REWARD = (
    "stage=reward",
    "reward.max_steps=6",
    "data.demo.demonstrations=280",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=8",
    "data.demo.answers_per_prompt=2",
    "rollout.max_new_tokens=8",
)


@pytest.fixture(scope="module", params=("bias", "standard", "none"))
def trained(request, make_config, tmp_path_factory):
    """A reward model that the stage trained, and how it was normalised."""
    root = tmp_path_factory.mktemp("outputs")
    config = make_config(*REWARD, f"reward.normalize={request.param}", f"output_root={root}")
    (node,) = build_graph(config)
    run_rank(write_spec(node, config))
    place = str(node.directory.model)
    return SimpleNamespace(kind=request.param, config=config, place=place, metrics=node.directory.result().metrics)


def demonstrations(config, tokenizer):
    items = encode_demonstrations(dataset(config).train.demonstrations, build_template(config.data, tokenizer))
    return sequence_batch(items, tokenizer.pad_token_id, torch.device("cpu"))


@torch.no_grad()
def test_a_normalised_reward_model_scores_demonstrations_around_zero(trained):  # row 10
    config = trained.config
    tokenizer = load_tokenizer(trained.place, "ppo.reward")
    batch = demonstrations(config, tokenizer)
    scorer = load_scorer(Source(trained.place, "ppo.reward"), config, config.zero, 0.0).eval()
    mask = right_mask(batch.lengths, batch.ids.size(1))
    scores = last_token(scorer(**model_inputs(scorer, batch.ids, mask)), batch.lengths).double()
    plain = AutoModelForSequenceClassification.from_pretrained(trained.place).eval()
    raw = torch.stack([
        plain(row[None, :length]).logits[0, 0] for row, length in zip(batch.ids, batch.lengths.tolist(), strict=True)
    ]).double()  # fmt: skip
    mean, deviation = float(raw.mean()), float(raw.std(unbiased=False))
    assert abs(mean) > 1e-3 and abs(deviation - 1) > 1e-3
    settings = json.loads((plain.config.__class__.from_pretrained(trained.place)).to_json_string(use_diff=False))
    assert trained.metrics.get("eval/reward_bias") == settings.get("reward_bias")
    assert trained.metrics.get("eval/reward_scale") == settings.get("reward_scale")
    if trained.kind == "none":
        assert "reward_bias" not in settings and torch.allclose(scores, raw, atol=1e-5)
        return
    assert settings["reward_bias"] == pytest.approx(mean, abs=1e-5)
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    if trained.kind == "bias":
        assert "reward_scale" not in settings
        assert float(scores.std(unbiased=False)) == pytest.approx(deviation, rel=1e-4)
        return
    assert settings["reward_scale"] == pytest.approx(deviation, rel=1e-4)
    assert float(scores.std(unbiased=False)) == pytest.approx(1.0, rel=1e-4)
    assert torch.allclose(scores, (raw - mean) / deviation, atol=1e-4)


@torch.no_grad()
def test_the_critic_has_the_reward_models_scale(trained, make_config, tmp_path):
    """Its values before the first update are the reward model's outputs at the tokens before each action, normalised."""
    tokenizer = load_tokenizer(trained.place, "ppo.reward")
    config = make_config(*SMALL_PPO, *REWARD[2:])
    actor, _ = save_models(config, tokenizer, tmp_path)
    loader, _, trainer = built(config, (actor, trained.place), tokenizer)
    out = trainer.generate_experience(next(iter(loader)))
    plain = AutoModelForSequenceClassification.from_pretrained(trained.place).eval()
    bias, scale = trained.metrics.get("eval/reward_bias", 0.0), trained.metrics.get("eval/reward_scale", 1.0)
    for row in range(8):
        prompt = out.prompts[row][out.prompt_mask[row].bool()]
        actions = out.responses[row][out.mask[row].bool()]
        hidden = plain.model(torch.cat([prompt, actions])[None]).last_hidden_state
        outputs = (plain.score(hidden)[0, :, 0] - bias) / scale
        assert torch.allclose(out.values[row, : len(actions)], outputs[len(prompt) - 1 : -1], atol=1e-4)
        assert float(out.scores[row]) == pytest.approx(float(outputs[-1]), abs=1e-4)


@contextmanager
def watched(attention, calls):
    """Note the width of what a block's attention reads in each call, and whether it is in training."""

    def note(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append((hidden.size(1), module.training))

    handle = attention.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def attentions(engine):
    """The first blocks' attention in actor and critic, adapted or not; recomputing a block calls it again."""
    plain = [getattr(e.module, "classifier", e.module) for e in (engine.actor, engine.critic)]
    return [(m.get_base_model() if hasattr(m, "peft_config") else m).model.decoder.layers[0].self_attn for m in plain]


@pytest.mark.parametrize("adapters", ((), ("lora=r8",)))
@pytest.mark.parametrize(
    ("actor_on", "critic_on"),
    ((True, False), (False, True), *(pytest.param(both, both, marks=pytest.mark.slow) for both in (True, False))),
)
def test_checkpointing_is_on_in_the_update_alone(make_config, tokenizer, models, actor_on, critic_on, adapters):
    config = make_config(
        *SMALL_PPO, *adapters, "ppo.micro_batch_size=4", f"ppo.gradient_checkpointing={str(actor_on).lower()}",
        f"ppo.critic_gradient_checkpointing={str(critic_on).lower()}", "rollout.fixed_length=true", "ppo.eos_penalty=null",
    )  # fmt: skip
    loader, engine, trainer = built(config, models, tokenizer)
    actor, critic = attentions(engine)
    for batch in loader:  # the second rollout comes after an update
        rollout, scoring, training, values = [], [], [], []
        width = batch.ids.size(1)
        with watched(actor, rollout):
            generate(engine.actor, batch, random_numbers(config, 8), tokenizer, config.rollout)
        # Prompts of about one length together; steps from the cache read weights without this code, but for the first of a
        # process, which is compared with it. Nothing is recomputed.
        rollout = [call for call in rollout if call != (1, False)]
        assert rollout and all(1 < read <= width and not in_training for read, in_training in rollout)
        with watched(actor, scoring):
            out = trainer.generate_experience(batch)
        scoring = [call for call in scoring if call != (1, False)]
        reads = 2 if adapters else 1  # with adapters the reference is this model too
        assert scoring[: len(rollout)] == rollout and len(scoring) == len(rollout) + 2 * reads  # two micro-batches
        tokens = int(out.prompt_mask.sum() + out.mask.sum())
        assert sum(read for read, _ in scoring[len(rollout) :]) == reads * tokens  # and no padding
        assert not any(in_training for _, in_training in scoring)
        with watched(actor, training), watched(critic, values):
            trainer.train_rlhf(out)
        # Two mini-batches of one micro-batch: forward, and again in the backward pass where it is checkpointed.
        assert len(training) == 2 * (1 + actor_on) and len(values) == 2 * (1 + critic_on)
        assert all(in_training for _, in_training in training + values)


def test_checkpointing_changes_no_update(make_config, tokenizer, smooth_models):
    options = *SMALL_PPO, "ppo.batch_size=8", "rollout.max_new_tokens=12", "ppo.max_grad_norm=1e9"
    plain, recomputed = (
        first_step(make_config(*options, f"ppo.gradient_checkpointing={on}"), smooth_models, tokenizer)
        for on in ("false", "true")
    )
    assert_same_update(recomputed, plain)


@torch.no_grad()
def scored(engine, config, tokenizer, given):
    """Values of responses by the critic at rest."""
    batch = prompts(config, tokenizer)
    actions = right_mask(given.lengths, 8)
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], dim=1)
    training = engine.critic.module.training
    engine.critic.eval()
    values = response_values(engine.critic, torch.cat([batch.ids, given.tokens], dim=1), mask, 8)
    engine.critic.train(training)
    return values * actions


def test_dropout_is_off_when_a_rollout_is_scored(make_config, tokenizer, models):
    changes = "ppo.dropout=0.2", "ppo.critic_dropout=0.5", "ppo.ratio_tolerance=5.0"
    config = make_config(*SMALL_PPO, *changes)
    loader, engine, trainer = built(config, models, tokenizer)
    assert engine.critic.module.config.dropout == 0.5 and engine.ref.module.config.dropout == 0.0
    given = responses(tokenizer)
    for batch in loader:
        trainer.train_rlhf(trainer.generate_experience(batch))
        generate(engine.actor, batch, random_numbers(config, 8), tokenizer, config.rollout)  # as every rollout begins
        with torch.no_grad():
            values = trainer.make_experience(prompts(config, tokenizer), given)[0].values
        assert torch.allclose(values, scored(engine, config, tokenizer, given), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("penalty", "mode", "raised"), [(-1.0, None, 0), (-1.0, "subtract", 0), (9.0, "replace", 2)])
def test_scores_that_a_penalty_raises_are_counted(make_config, tokenizer, models, penalty, mode, raised):
    """Of responses without end, of which there are two; where scores are not normalised, by default it is none."""
    config = make_config(*SMALL_PPO, f"ppo.eos_penalty={penalty}", *([f"ppo.eos_penalty_mode={mode}"] if mode else []))
    _, _, trainer = built(config, models, tokenizer)
    experience, _ = trainer.make_experience(prompts(config, tokenizer), responses(tokenizer))
    assert trainer.count_raised(experience.scores, torch.tensor(ENDED)) == raised
