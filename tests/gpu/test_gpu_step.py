"""Step 3 on a GPU: a 1.3B shape under ZeRO 2, adapters merged for the rollouts or none."""

import math

import pytest
import torch
from support.tiny_models import built, save_models

from rlhf.engine.zero import release

LARGE = (  # their shapes alone: records and hyperparameters are the demo's
    "model=opt-1.3b", "model.path=null", "reward_model=opt-350m", "reward_model.path=null", "data=demo", "sft=demo",
    "reward=demo", "ppo=demo", "rollout/length@rollout=demo", "lora=none", "lora@critic_lora=same", "lora@reward_lora=same",
)  # fmt: skip
STEP = (
    "zero='2'", "precision=bf16", "rollout.max_new_tokens=64", "ppo.rollout_batch_size=32", "ppo.batch_size=32",
    "ppo.micro_batch_size=16", "ppo.update_epochs=1", "ppo.max_steps=10", "ppo.learning_rate=1e-5", "ppo.ema=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where models of each kind are saved, once."""
    return tmp_path_factory.mktemp("step")


@pytest.fixture
def made(gpu_config, sizes, tokenizer, places):
    """`made(*overrides)`: a configuration, and models of its shapes on disk."""

    def make(*overrides):
        config = gpu_config(*sizes(LARGE, ()), *STEP, *overrides)
        if not (places / "actor").exists():
            save_models(config, tokenizer, places)
        return config, (str(places / "actor"), str(places / "reward"))

    return make


@pytest.mark.parametrize("options", [(), ("lora=r8",), ("rollout.release_cache=true",)], ids=["plain", "lora", "release"])
def test_ten_iterations(made, tokenizer, options):
    config, models = made(*options)
    loader, engine, trainer = built(config, models, tokenizer)
    frozen = {name: p.detach().clone() for name, p in engine.actor.module.named_parameters() if not p.requires_grad}
    done = 0
    for batch in loader:
        experience = trainer.generate_experience(batch)
        trainer.train_rlhf(experience)
        assert all(map(math.isfinite, trainer.metrics.values()))
        assert trainer.metrics["policy/sampler_gap"] < 0.02  # and the trainer itself checks that ratios begin at 1
        done += 1
    assert done == 10
    sampler = engine.sampler_of(engine.actor, config.rollout)
    assert (sampler.decoder is not None) == (not config.rollout.release_cache)
    assert bool(frozen) == (config.lora.rank > 0)
    assert all(torch.equal(frozen[name], p) for name, p in engine.actor.module.named_parameters() if name in frozen)
    release(engine.actor, engine.critic)
