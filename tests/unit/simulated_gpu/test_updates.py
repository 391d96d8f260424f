"""Where updates wait for the GPU, with reasons: of a micro-batch's losses and metrics none is asked for before the end."""

import pytest
from support.gpusim import needs_gpusim
from support.gpusim.tags import TaggedWaits
from support.tiny_models import built

from rlhf.ppo.experience import columns_of

pytestmark = [needs_gpusim, pytest.mark.slow]
# Each place that waits, with what for: how often in one update of two micro-batches, and why.
AN_UPDATE = {
    ("models/forward.py count_tokens", "copy to the host"): (4, "lengths, in each pass of actor and critic"),
    ("ppo/experience.py Experience.lengths", "copy to the host"): (1, "lengths decide who is read together"),
    ("ppo/trainer.py DeepSpeedPPOTrainer.train_minibatch", "item"): (2, "what the losses of both models are divided by"),
    ("runtime/compat/deepspeed.py measure_gradient", "item"): (
        2,
        "a norm that is not finite stops both models",
    ),
}
A_ROLLOUTS_UPDATES = {
    ("ppo/experience.py first_nonfinite.<locals>.<listcomp>", "item"): (4, "whether the rollout can be trained on"),
    ("ppo/metrics.py UpdateMetrics.first_gap", "item"): (1, "whether the first ratios are 1, before the first step"),
    ("ppo/metrics.py UpdateMetrics.reduce", "item"): (1, "the largest ratio"),
    ("ppo/metrics.py read_numbers", "copy to the host"): (2, "the first ratios, and the metrics, together"),
}


def test_updates_wait_where_they_must_alone(make_config, models, tokenizer):
    sizes = "ppo.rollout_batch_size=8", "ppo.batch_size=8", "ppo.micro_batch_size=4", "ppo.update_epochs=1"
    loader, engine, trainer = built(make_config(*sizes, "rollout.max_new_tokens=6"), models, tokenizer)
    experience = trainer.generate_experience(next(iter(loader)))
    weights = [parameter for model in (engine.actor, engine.critic) for parameter in model.module.parameters()]
    with TaggedWaits(*weights, *columns_of(experience).values()) as mode:
        trainer.train_rlhf(experience)
    engine.release()
    assert mode.waits == {place: count for place, (count, _) in (AN_UPDATE | A_ROLLOUTS_UPDATES).items()}
