"""Every algorithm takes a step on the PPO stage's loop, with the models that it needs and no others."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from support.command import ROOT
from support.small import SMALL_PPO
from support.tiny_models import built
from transformers import AutoModelForCausalLM

import rlhf
from rlhf import DeepSpeedPPOTrainer
from rlhf.catalog.stage import check_metrics
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.data.tokens import to_prompt_batch
from rlhf.evaluation.heldout import Prompt, compare
from rlhf.ppo.evaluate import Evaluation
from rlhf.ppo.report import describe_speed

pytestmark = pytest.mark.rounding

NAMES = sorted({path.stem for path in (ROOT / "conf" / "algorithm").glob("*.yaml")} - {"dpo"})  # a stage of its own
WITHOUT_REFERENCE = {"dapo", "gspo"}


def changed(engine, before):
    return any(not torch.equal(old, new) for old, new in zip(before, engine.module.parameters(), strict=True))


def copy(engine):
    return [parameter.detach().clone() for parameter in engine.module.parameters()]


OFTEN = ("grpo", "remax", "raft")  # of every kind of model one


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in NAMES])
def test_a_step(make_config, models, tokenizer, name):
    config = make_config(*SMALL_PPO, f"algorithm={name}", "ppo.overlong_filter=false")  # few answers of 8 tokens end
    loader, engine, trainer = built(config, models, tokenizer)
    assert config.algorithm == name and trainer.args.algorithm == name
    assert (engine.critic is None) == (name != "ppo") and (engine.ref is None) == (name in WITHOUT_REFERENCE)
    before = copy(engine.actor)
    out = trainer.generate_experience(next(iter(loader)))
    assert torch.isfinite(out.advantages).all() and (out.values is None) == (name != "ppo")
    losses = trainer.train_rlhf(out)
    metrics = trainer.metrics | describe_speed(config, out, trainer.clock)
    check_metrics("ppo", metrics)
    assert all(map(math.isfinite, [*losses, *metrics.values()]))
    assert metrics["policy/ratio_first"] < 1e-4 and changed(engine.actor, before)
    assert ("kl/sequence" in metrics) == (name not in WITHOUT_REFERENCE)
    assert ("value/loss" in metrics) == ("lr/critic" in metrics) == (name == "ppo")
    assert ("reward/greedy" in metrics) == (name == "remax")
    assert ("group/equal" in metrics) == (config.rollout.samples_per_prompt > 1)
    engine.release()


@pytest.fixture
def trained(make_config, models, tokenizer):
    """`trained(overrides)`: a trainer that has taken one step, its experience and its loader."""

    def run(*overrides):
        loader, _, trainer = built(make_config(*SMALL_PPO, *overrides), models, tokenizer)
        out = trainer.generate_experience(next(iter(loader)))
        trainer.train_rlhf(out)
        return trainer, out, loader

    return run


@pytest.mark.slow
def test_kl_in_the_loss_is_no_part_of_the_rewards(trained):
    trainer, out, _ = trained("algorithm=grpo", "ppo.eos_penalty=null", "ppo.update_epochs=3", "ppo.learning_rate=1e-2")
    assert out.rewards.sum(1).tolist() == pytest.approx(out.scores.tolist())
    assert trainer.metrics["policy/kl_loss"] > 0


@pytest.mark.slow
def test_groups_are_compared_with_themselves_alone(trained):
    _, out, _ = trained("algorithm=dr_grpo", "rollout.samples_per_prompt=4")
    one = out.advantages.sum(1) / out.mask.sum(1)
    assert one.view(2, 4).sum(1).tolist() == pytest.approx([0, 0], abs=1e-4)


def test_overlong_responses_are_left_out_of_the_loss(make_config, models, tokenizer):
    config = make_config(*SMALL_PPO, "algorithm=dapo", "ppo.dynamic_sampling=false", "ppo.eos_penalty=null")
    loader, _, trainer = built(config, models, tokenizer)
    limits = torch.tensor([3, 99, 8, 99, 7, 99, 99, 99])
    out = trainer.generate_experience(replace(next(iter(loader)), limits=limits))
    assert out.loss_mask.any(1).tolist() == (limits < 99).tolist()
    punished = (out.rewards.sum(1) - out.scores).tolist()  # over the last 1.6 of 8 tokens
    assert punished[0] == 0 and punished[1:5] == pytest.approx([-1, -1, -1, -0.375], abs=1e-5)


def test_rewards_see_the_records_of_greedy_answers_too(make_config, models, tokenizer):
    loader, engine, trainer = built(make_config(*SMALL_PPO, "algorithm=remax"), models, tokenizer)
    asked = []
    engine.judges.note_prompts = lambda prompts, records: asked.append([record.text for record in records])
    trainer.generate_experience(batch := next(iter(loader)))
    assert asked == [[record.text for record in batch.records]] * 2 and asked[0]


@pytest.mark.slow
def test_raft_trains_one_response_to_a_prompt(trained):
    _, out, _ = trained("algorithm=raft")
    best = out.rewards.sum(1).view(2, 4).argmax(1) + torch.tensor([0, 4])
    assert out.loss_mask.any(1).nonzero().flatten().tolist() == best.tolist()


def test_the_critic_alone_learns_in_its_warm_up(make_config, models, tokenizer):
    loader, engine, trainer = built(make_config(*SMALL_PPO, "ppo.critic_warmup=1"), models, tokenizer)
    moved = []
    for batch in loader:
        before = copy(engine.actor), copy(engine.critic)
        trainer.train_rlhf(trainer.generate_experience(batch))
        check_metrics("ppo", trainer.metrics)
        moved.append((changed(engine.actor, before[0]), changed(engine.critic, before[1])))
    assert moved == [(False, True), (True, True)]


@pytest.mark.slow
def test_updates_end_when_the_policy_has_moved_enough(trained):
    many = "ppo.update_epochs=4", "ppo.learning_rate=1e-2"
    trainer, *_ = trained(*many, "ppo.early_stop_kl=1e-3")
    assert 1 < trainer.metrics["policy/updates"] < 8 and trainer.update_metrics.passes(trainer.ppo) < 4
    assert trainer.updates == 8  # of the schedule
    trainer, *_ = trained(*many, "ppo.early_stop_kl=1e3")
    assert trainer.metrics["policy/updates"] == 8


@pytest.mark.slow
def test_an_entropy_bonus_keeps_the_entropy_up(trained):
    def entropy_after(*overrides):
        trainer, _, loader = trained("ppo.learning_rate=1e-2", "ppo.kl_coef=0", *overrides)
        trainer.train_rlhf(trainer.generate_experience(next(iter(loader))))
        return trainer.metrics["policy/entropy"]

    assert entropy_after("ppo.entropy_coef=1.0") > entropy_after() + 0.01


@pytest.mark.slow
def test_the_reference_becomes_the_policy(make_config, models, tokenizer):
    loader, engine, trainer = built(make_config(*SMALL_PPO, "ppo.reference_refresh=2"), models, tokenizer)
    start = copy(engine.ref)
    for number, batch in enumerate(loader, start=1):
        trainer.train_rlhf(trainer.generate_experience(batch))
        assert changed(engine.ref, start) == (number == 2)
    assert not changed(engine.ref, list(engine.actor.module.parameters()))
    with engine.start_policy() as began:  # what evaluations measure the KL to
        assert not changed(began, start)


@pytest.mark.parametrize("name", ["gspo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_evaluations_measure_the_kl_to_where_the_policy_began(make_config, models, tokenizer, name):
    config = make_config(*SMALL_PPO, f"algorithm={name}", "ppo.learning_rate=1e-3")
    loader, engine, trainer = built(config, models, tokenizer)
    ids = next(iter(loader)).ids[0].tolist()
    evaluation = Evaluation(engine, config, None, [Prompt("one", "one", ids), Prompt("two", "two", ids[1:])])
    before = evaluation.answers_before()
    assert compare(before, before)["eval/kl_sequence"] == 0
    for batch in loader:
        trainer.train_rlhf(trainer.generate_experience(batch))
    assert abs(compare(before, evaluation.answers(engine.actor))["eval/kl_sequence"]) > 1e-4


def rounded(trainer, levels=1):
    """Let a trainer's reward model have few scores, so that many groups have one alone."""
    score = trainer.score_responses
    trainer.score_responses = lambda *inputs: (score(*inputs) * levels).round()
    return trainer


DYNAMIC = (
    "algorithm=dapo",
    "rollout.samples_per_prompt=2",
    "rollout.top_k=3",
    "ppo.max_draws=100",
    "ppo.overlong_filter=false",
)


def test_dynamic_sampling_fills_a_rollout_with_groups_that_differ(make_config, models, tokenizer):
    loader, _, trainer = built(make_config(*SMALL_PPO, *DYNAMIC), models, tokenizer)
    seen = []
    out = rounded(trainer, 4).generate_experience(next(iter(loader)), lambda: seen.append(trainer.draws.count))
    groups = out.scores.view(4, 2)
    assert (groups[:, 0] != groups[:, 1]).all() and len(out.scores) == 8
    assert trainer.metrics["group/draws"] == len(seen) + 1 > 1 and trainer.metrics["group/equal"] == 0
    trainer.train_rlhf(out)
    assert trainer.metrics["policy/ratio_first"] < 1e-4
    speed = describe_speed(trainer.args, out, trainer.clock, drawn=trainer.draws.lengths)
    assert speed["throughput/samples_per_s"] * speed["time/step_s"] == pytest.approx(
        8 * (len(seen) + 1)
    )  # all that it cost
    assert speed["throughput/train_samples_per_s"] * speed["time/train_s"] == pytest.approx(8 * trainer.ppo.update_epochs)


def test_a_rollout_that_is_not_full_goes_on_where_it_was(make_config, models, tokenizer):
    config = make_config(*SMALL_PPO, *DYNAMIC)
    loader, engine, trainer = built(config, models, tokenizer)
    batch, kept = next(iter(loader)), []
    whole = rounded(trainer, 4).generate_experience(
        batch, lambda: kept.append((trainer.numbers(), {k: v.clone() for k, v in trainer.tensors().items()}))
    )
    numbers, tensors = kept[0]
    other = rounded(DeepSpeedPPOTrainer(engine=engine, args=config), 4)
    other.load_state_dict(numbers, tensors)
    resumed = other.generate_experience(batch)
    assert torch.equal(resumed.responses, whole.responses) and torch.equal(resumed.advantages, whole.advantages)
    assert other.draws.lengths == trainer.draws.lengths


def test_a_rollout_that_cannot_be_filled_ends_the_run(make_config, models, tokenizer):
    loader, _, trainer = built(make_config(*SMALL_PPO, *DYNAMIC, "ppo.max_draws=2"), models, tokenizer)
    trainer.score_responses = lambda ids, *_: torch.zeros(len(ids), 1)
    with pytest.raises(RuntimeError, match=r"ppo\.max_draws=2: .* only 0 of 8 responses .*dynamic_sampling=false"):
        trainer.generate_experience(next(iter(loader)))


@pytest.mark.slow
def test_prompts_of_ones_own_draw_no_others(make_config, models, tokenizer):
    loader, _, trainer = built(make_config(*SMALL_PPO, *DYNAMIC), models, tokenizer)
    trainer.score_responses = lambda ids, *_: torch.zeros(len(ids), 1)
    with pytest.raises(RuntimeError, match=r"dynamic_sampling=true: these prompts come from a loader that draws no others"):
        trainer.generate_experience(replace(next(iter(loader)), draw=None))


def test_further_draws_are_other_samples(make_config, tokenizer):
    loader = create_prompt_dataloader(make_config(*SMALL_PPO), tokenizer)
    first, second = iter(loader)
    assert first.more(1).samples == list(range(8, 16)) and first.more(2).samples == list(range(16, 24))
    assert first.more(1).ids.tolist() != first.ids.tolist() != second.more(1).ids.tolist()
    assert first.more(1).ids.tolist() == first.more(1).ids.tolist()


def test_prompts_as_deepspeed_chat_gives_them_and_saving(make_config, models, tokenizer, tmp_path):
    config = make_config(*SMALL_PPO, "algorithm=reinforce_pp")
    loader, engine, trainer = built(config, models, tokenizer)
    batch = next(iter(loader))
    mask = torch.arange(batch.ids.size(1)) >= (batch.ids.size(1) - batch.lengths)[:, None]
    expected = trainer.generate_experience(batch)
    found = trainer.generate_experience({"prompt": batch.ids, "prompt_att_mask": mask.long()})
    assert torch.equal(found.responses, expected.responses) and torch.equal(found.advantages, expected.advantages)
    trainer.train_rlhf(found)
    trainer.save(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(p, saved[name]) for name, p in engine.actor.module.named_parameters())


def test_prompts_of_ones_own_are_repeated_for_their_group_and_padded_on_the_left():
    prompts = {"prompt": torch.tensor([[0, 5], [6, 7]]), "prompt_att_mask": torch.tensor([[0, 1], [1, 1]])}
    found = to_prompt_batch(prompts, rank=1, copies=2)
    assert found.ids.tolist() == [[0, 5], [0, 5], [6, 7], [6, 7]] and found.lengths.tolist() == [1, 1, 2, 2]
    assert (found.samples, found.copies) == ([4, 5, 6, 7], 2)
    with pytest.raises(ValueError, match="padded on the left"):
        to_prompt_batch(prompts | {"prompt_att_mask": torch.tensor([[1, 0], [1, 1]])}, rank=0)


@pytest.mark.slow
def test_prompts_and_a_reward_of_ones_own_are_trained_on_as_the_docs_show(
    make_config, models, tokenizer, tmp_path, monkeypatch
):
    code = (ROOT / "docs" / "python.md").read_text().split("Prompts and a reward of your own", 1)[1]
    code = code.split("```python\n", 1)[1].split("```")[0].replace("] * 32", "] * 4")
    (tmp_path / "mine.py").write_text("def score(prompts, responses, records):\n    return [len(p) / 9 for p in prompts]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rlhf, "load_config", lambda *words: make_config(*SMALL_PPO, *words))
    known = {"rlhf": rlhf, "actor": models[0], "tokenizer": tokenizer}
    known |= {name: getattr(rlhf, name) for name in ("DeepSpeedRLHFEngine", "DeepSpeedPPOTrainer")}
    exec(code, known)
    assert known["out"].scores.unique().numel() == 2 and AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    known["engine"].release()


def test_the_algorithm_of_the_docs_is_whole(make_config, models, tokenizer, tmp_path, monkeypatch):
    """One function and one YAML file, as docs/extending.md shows them."""
    page = (ROOT / "docs" / "extending.md").read_text().split("## An algorithm", 1)[1]
    code, values = page.split("```python\n", 1)[1].split("```")[0], page.split("```yaml\n", 1)[1].split("```")[0]
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "opo.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    stated = yaml.safe_load(values)
    overrides = [f"{group}.{key}={json.dumps(v)}" for group in ("ppo", "rollout") for key, v in stated[group].items()]
    config = make_config(*SMALL_PPO, *overrides, "rollout.samples_per_prompt=4")
    loader, engine, trainer = built(config, models, tokenizer)
    out = trainer.generate_experience(next(iter(loader)))
    trainer.train_rlhf(out)
    assert engine.critic is None and engine.ref is None
    assert (out.advantages.sum(1).view(2, 4).sum(1)).tolist() == pytest.approx([0, 0], abs=1e-4)  # lengths weigh
