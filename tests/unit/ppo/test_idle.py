"""`ppo.offload_idle`: models give their memory back while they have nothing to do, and nothing else changes."""

import pytest
import torch
from support.small import SMALL_PPO
from support.tiny_models import built

from rlhf.data.tokenized import DataSource
from rlhf.engine.offload import storages
from rlhf.evaluation.heldout import heldout_prompts
from rlhf.ppo import engine as engine_module
from rlhf.ppo import trainer as trainer_module
from rlhf.ppo.engine import is_shared
from rlhf.ppo.evaluate import Evaluation
from rlhf.rewards import judges as judges_module
from rlhf.rollout.hybrid.sampler import HybridSampler

SMALL = (*SMALL_PPO, "ppo.micro_batch_size=2", "rollout.max_new_tokens=6", "data.demo.heldout_prompts=4")


@pytest.fixture(autouse=True)
def owned(monkeypatch):
    """On the CPU weights may lie in the file they were read from, whose memory cannot be given back; on a GPU never."""

    def owning(load):
        def loaded(*given):
            model = load(*given)
            for parameter in model.parameters():
                if not hasattr(parameter, "ds_id"):
                    parameter.data = parameter.data.clone()
            return model

        return loaded

    for module, name in ((engine_module, "load_policy"), (engine_module, "load_scorer"), (judges_module, "load_scorer")):
        monkeypatch.setattr(module, name, owning(getattr(module, name)))


def at_hand(engine):
    """Which of the three are on the device."""
    names = {"critic": engine.critic, "ref": engine.ref, "reward": engine.reward}
    return sorted(
        name for name, held in names.items() if not is_shared(held) and storages(held, frozen=name != "critic") != []
    )


def run(config, models, tokenizer, monkeypatch):
    """Two steps and an evaluation; metrics, answers and weights, and which models were at hand when."""
    loader, engine, trainer = built(config, models, tokenizer)
    seen = {}

    def noting(owner, name, phase):
        plain = getattr(owner, name)

        def noted(*given, **options):
            seen.setdefault(phase, []).append(at_hand(engine))
            return plain(*given, **options)

        monkeypatch.setattr(owner, name, noted)

    sampler = engine.sampler_of(engine.actor, config.rollout)
    noting(sampler, "generate", "rollout")
    noting(trainer_module, "score_rollout", "score")
    noting(trainer_module, "policy_gradient", "update")
    evaluation = Evaluation(engine, config, None, heldout_prompts(DataSource(config), tokenizer))
    noting(evaluation, "answer_some", "evaluation")
    metrics = []
    for batch in loader:
        experience = trainer.generate_experience(batch)
        seen.setdefault("between", []).append(at_hand(engine))
        trainer.train_rlhf(experience)
        metrics.append(trainer.metrics)
    monkeypatch.delattr(sampler, "generate")
    answers = evaluation.answers(engine.ref), evaluation.answers(engine.actor)
    weights = [p.detach().clone() for e in (engine.actor, engine.critic) for p in e.module.parameters()]
    monkeypatch.undo()
    engine.release()
    return metrics, answers, weights, {phase: {tuple(hand) for hand in hands} for phase, hands in seen.items()}


EVERY = ("critic", "ref", "reward")
MOMENTS = {
    ("none", "none"): {"rollout": (), "score": EVERY, "update": ("critic",), "evaluation": ("ref", "reward")},
    # The reference is the actor without adapters.
    ("r8", "none"): {"rollout": (), "score": ("critic", "reward"), "update": ("critic",), "evaluation": ("reward",)},
    # The reward model is the critic without its own.
    ("none", "r8"): {"rollout": (), "score": ("critic", "ref"), "update": ("critic",), "evaluation": ("critic", "ref")},
}


@pytest.mark.parametrize(("lora", "critic_lora"), MOMENTS)
def test_models_are_there_when_they_are_needed_and_only_then(
    make_config, models, tokenizer, owned, monkeypatch, lora, critic_lora
):
    adapters = (f"lora={lora}", f"lora@critic_lora={critic_lora}")
    *found, seen = run(make_config(*SMALL, *adapters, "ppo.offload_idle=true"), models, tokenizer, monkeypatch)
    expected = MOMENTS[lora, critic_lora] | {"between": ("critic",)}
    assert seen == {phase: {hand} for phase, hand in expected.items()}
    *plain, _ = run(make_config(*SMALL, *adapters), models, tokenizer, monkeypatch)
    assert found[:2] == plain[:2]
    assert all(torch.equal(a, b) for a, b in zip(found[2], plain[2], strict=True))


@pytest.mark.parametrize("zero", ["2", pytest.param("3", marks=pytest.mark.slow)])
def test_sharded_models_too(make_config, models, tokenizer, monkeypatch, zero):
    *found, _ = run(make_config(*SMALL, f"zero='{zero}'", "ppo.offload_idle=true"), models, tokenizer, monkeypatch)
    *plain, _ = run(make_config(*SMALL, f"zero='{zero}'"), models, tokenizer, monkeypatch)
    assert found[:2] == plain[:2]
    assert all(torch.equal(a, b) for a, b in zip(found[2], plain[2], strict=True))


def test_a_rollout_that_fails_leaves_the_critic_at_hand(make_config, models, tokenizer, monkeypatch):
    loader, engine, trainer = built(make_config(*SMALL, "ppo.offload_idle=true"), models, tokenizer)

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(HybridSampler, "generate", broken)
    with pytest.raises(KeyboardInterrupt):
        trainer.generate_experience(next(iter(loader)))
    assert at_hand(engine) == ["critic"]
