"""Small models in this process, as its only rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf import DeepSpeedPPOTrainer, DeepSpeedRLHFEngine
from rlhf.catalog.families import FAMILIES
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.data.records import load_dataset
from rlhf.data.tokens import prompt_batch
from rlhf.engine.state import engine_state
from rlhf.engine.zero import TrainingSpec, frozen_engine, training_engine
from rlhf.models.load import new_policy, new_scorer
from rlhf.planner.batches import batches
from rlhf.ppo.experience import Experience
from rlhf.rollout import create_sampler
from rlhf.runtime.compat.deepspeed import local_shard
from rlhf.runtime.distributed import start
from support.rounding import assert_same_gradients, assert_same_step
from support.texts import encode_prompt

PROMPTS = ("How do I clean a kettle?", "What is the best way to repair a lamp?", "Can you help me choose my sofa?")


def policy_engine(config, tokenizer):
    """A frozen engine around a random policy of the configuration's shape."""
    start(config)
    return frozen_engine(new_policy(config.model, config, tokenizer, config.zero, 0.0), config, config.zero)


def scorer_engine(config, tokenizer):
    """A frozen engine around a random scorer of the configuration's shape."""
    start(config)
    return frozen_engine(new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0), config, config.zero)


def learning_engine(config, tokenizer):
    """An engine that trains a random policy of the configuration's shape, with adapters if it has any, as SFT would."""
    start(config)
    policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    plan = batches(config, "sft")
    return training_engine(policy, config, TrainingSpec(config.sft, plan, config.zero, config.lora, 1e-3, 0.0, False))


def learning_scorer(config, tokenizer):
    """An engine that trains a random scorer of the configuration's shape, as the reward stage would."""
    start(config)
    step, zero, lora = config.reward, config.reward_zero, config.reward_lora
    scorer = new_scorer(config.reward_model, config, tokenizer, zero, step.dropout)
    learning = TrainingSpec(step, batches(config, "reward"), zero, lora, 1e-3, 0.0, False, "reward_lora")
    return training_engine(scorer, config, learning)


def prompts(config, tokenizer, texts=PROMPTS, samples=None):
    """Prompts as a left-padded batch."""
    ids = [encode_prompt(text, tokenizer, config.data) for text in texts]
    return prompt_batch(ids, samples or list(range(len(ids))), tokenizer.pad_token_id, torch.device("cpu"))


def random_numbers(config, count, seed=0):
    """Uniform numbers for a rollout of so many samples."""
    return np.random.default_rng(seed).random((count, config.rollout.max_new_tokens), dtype=np.float32)


def generate(engine, batch, numbers, tokenizer, rollout):
    """The responses of a sampler that is made for this rollout alone."""
    return sample(create_sampler(engine, tokenizer, rollout), batch, numbers)


def sample(sampler, batch, numbers):
    """The responses of a sampler by these numbers, with the weights of now."""
    sampler.sync()
    return sampler.generate(batch, torch.from_numpy(numbers).to(batch.ids.device))


def save_models(config, tokenizer, directory):
    """A random policy and a random reward model on disk, as plain transformers models with their tokenizer."""
    start(config)
    places = directory / "actor", directory / "reward"
    new_policy(config.model, config, tokenizer, config.zero, 0.0).save_pretrained(places[0])
    new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0).classifier.save_pretrained(places[1])
    for place in places:
        tokenizer.save_pretrained(place)
    return tuple(map(str, places))


def dataset(config):
    """The configuration's data."""
    return load_dataset(config)


def built(config, models, tokenizer):
    """Prompts, engine and trainer of step 3 on models on disk."""
    loader = create_prompt_dataloader(config, tokenizer)
    engine = DeepSpeedRLHFEngine(*models, tokenizer, len(loader), config)
    return loader, engine, DeepSpeedPPOTrainer(engine=engine, args=config)


def pairs_of_answers(prompt, answers):
    """All pairs of so many answers, of 3 to 5 tokens, to a prompt that begins with this id."""
    encoded = [Encoded([prompt, 9], [20 + number] * (2 + number % 3) + [1]) for number in range(answers)]
    return list(combinations(encoded, 2))


@contextmanager
def smooth_opt() -> Iterator[None]:
    """Make OPT models with GELU in place of ReLU meanwhile (rounding.py says why)."""
    plain = FAMILIES["opt"]
    with pytest.MonkeyPatch.context() as patch:
        smooth = replace(plain, arguments=lambda shape: plain.arguments(shape) | {"activation_function": "gelu"})
        patch.setitem(FAMILIES, "opt", smooth)
        yield


def weights(*engines) -> list[Tensor]:
    """Copies of the weights of engines, or of the shards that this rank holds."""
    return [local_shard(parameter).detach().clone() for engine in engines for parameter in engine.module.parameters()]


def gradients(*engines) -> list[Tensor]:
    """The gradients of the only update that AdamW has made, whatever the ZeRO stage: its first moments are 1 - beta_1 of
    them (after clipping)."""
    return [
        moment.detach() / (1 - engine.optimizer.param_groups[0]["betas"][0])
        for engine in engines
        for name, moment in engine_state(engine).items()
        if name.endswith("/exp_avg")
    ]


@dataclass
class Step:
    """What a step came to: the rollout's experience, weights before and after its only update, gradients and metrics."""

    experience: Experience
    before: list[Tensor]
    weights: list[Tensor]
    gradients: list[Tensor]
    metrics: dict[str, float]


def first_step(config, models, tokenizer) -> Step:
    """The first step of PPO on eight responses of these lengths, of actor and critic."""
    loader, engine, trainer = built(config, models, tokenizer)
    trained = engine.actor, engine.critic
    before, batch = weights(*trained), replace(next(iter(loader)), limits=torch.tensor([12, 3, 7, 1, 12, 5, 2, 9]))
    experience = trainer.generate_experience(batch)
    trainer.train_rlhf(experience)
    step = Step(experience, before, weights(*trained), gradients(*trained), trainer.metrics)
    engine.release()
    return step


def assert_same_update(found: Step, expected: Step) -> None:
    """Two ways to make a step had the same gradients, and ended at the same weights, but for rounding."""
    assert_same_gradients(found.gradients, expected.gradients)
    assert_same_step(found.weights, expected.weights, expected.before)
