"""Updates that begin from the sampler's log-probabilities do what those from the actor's own do, without its pass."""

from dataclasses import replace

import pytest
import torch
from support.small import SMALL_PPO
from support.tiny_models import assert_same_update, built, first_step, weights

from rlhf.planner.memory import Batch, phase_bytes
from rlhf.planner.ppo import phase_flops
from rlhf.ppo import passes
from rlhf.rollout.hybrid.sampler import HybridSampler
from rlhf.stages.ppo.checks import sampler_problems

pytestmark = pytest.mark.rounding

SAMPLER = "ppo.old_logprobs=sampler"
SMALL = (*SMALL_PPO, "ppo.batch_size=8", "rollout.max_new_tokens=12", "ppo.max_steps=3")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("rollout.temperature=0.7", "rollout.top_k=30", "rollout.top_p=0.9", "rollout.repetition_penalty=1.3"),
        pytest.param(("rollout=hf", "ppo.kl_placement=loss", "ppo.kl_estimator=k3"), marks=pytest.mark.slow),
        pytest.param(("lora=r8", "rollout.micro_batch_size=4"), marks=pytest.mark.slow),
    ],
)
def test_the_update_is_the_same_without_the_actors_pass(make_config, smooth_models, tokenizer, monkeypatch, options):
    calls, read = [], passes.response_logprobs
    monkeypatch.setattr(
        passes, "response_logprobs", lambda *given, **more: (calls.append(given[0]), read(*given, **more))[1]
    )
    expected, found = (
        first_step(make_config(*SMALL, *options, *word), smooth_models, tokenizer) for word in ((), (SAMPLER,))
    )
    assert len(calls) == 3 + 2  # actor, reference, update; reference, update
    assert_same_update(found, expected)
    assert not torch.equal(found.experience.logprobs, expected.experience.logprobs)  # they are computed in another way
    torch.testing.assert_close(found.experience.logprobs, expected.experience.logprobs, rtol=0, atol=1e-4)
    assert found.metrics.keys() == expected.metrics.keys()
    for name in ("policy/sampler_gap", "policy/sampler_gap_max"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name], abs=1e-6) and found.metrics[name] > 0


@pytest.mark.parametrize(("amount", "outcome"), [(5e-3, "warns"), (0.1, "stops"), (float("nan"), "is left out")])
def test_a_sampler_that_is_off_shows_in_the_first_mini_batch(
    make_config, models, tokenizer, monkeypatch, capsys, amount, outcome
):
    def shifted(*given):
        responses = plain(*given)
        return replace(responses, logprobs=responses.logprobs + amount)

    plain = HybridSampler.generate
    monkeypatch.setattr(HybridSampler, "generate", shifted)
    loader, engine, trainer = built(make_config(*SMALL, SAMPLER), models, tokenizer)
    experience, before = trainer.generate_experience(next(iter(loader))), weights(engine.actor)
    if outcome == "stops":
        with pytest.raises(RuntimeError, match=r"rollout 0: the sampler's log-probabilities are 0\.1 nats per token from"):
            trainer.train_rlhf(experience)
    else:
        trainer.train_rlhf(experience)
    same = all(torch.equal(*pair) for pair in zip(before, weights(engine.actor), strict=True))
    assert same == (outcome != "warns")
    assert ("warning: rollout 0: the sampler's" in capsys.readouterr().out) == (outcome == "warns")
    assert (trainer.metrics.get("policy/sampler_gap") == pytest.approx(amount, rel=0.01)) == (outcome == "warns")


def test_the_plan_knows_that_the_actor_reads_nothing(make_config):
    actor, sampler = make_config("algorithm=dapo"), make_config("algorithm=dapo", SAMPLER)
    flops = [phase_flops(config, [10], [20]) for config in (actor, sampler)]
    assert 0 < flops[1]["score"] < flops[0]["score"] and flops[1]["update"] == flops[0]["update"]
    score = [phase_bytes(config, "ppo", Batch(8, 8))["score"] for config in (actor, sampler)]
    assert score[0]["logits"] > score[1]["logits"] == 0.0  # there is no reference either
    shared = [phase_bytes(make_config("lora=r8", *word), "ppo", Batch(8, 8))["score"] for word in ((), (SAMPLER,))]
    assert shared[0] == shared[1]  # the reference is the actor with its adapters off


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (("ppo.dropout=0.1", "ppo.ratio_tolerance=1.0"), "ppo.old_logprobs", "ppo.dropout=0"),
        (("ppo.ratio_tolerance=1.0",), "ppo.ratio_tolerance", "set it null"),
        (("rollout=paged",), "ppo.old_logprobs", "rollout=hybrid"),
    ],
)
def test_what_contradicts_it_is_refused(make_config, overrides, key, fix):
    refused = {error.key: str(error) for error in sampler_problems(make_config(SAMPLER, *overrides))}
    assert set(refused) >= {key} and fix in refused[key]
