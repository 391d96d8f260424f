"""Rounds of step 3 and of its phases on a tiny model."""

import math
import time
from dataclasses import replace

import pytest
import torch
from support.small import SMALL_BENCH

from rlhf.algo.estimators.gae import advantages_and_returns
from rlhf.catalog.stage import check_metrics
from rlhf.cli.prepare import load_config
from rlhf.models.forward import response_logprobs, response_scores, response_values
from rlhf.planner.decode import decode_bytes
from rlhf.runtime.device import copy_gb_s
from rlhf.stages.bench.deepspeed_chat import DeepSpeedChatTrainer
from rlhf.stages.bench.generate import generate as plain_generate
from rlhf.stages.bench.inputs import prompts
from rlhf.stages.bench.rounds import decode_metrics, matrix_metrics, random_models, round_of
from rlhf.tracking.throughput import Clock

SMALL = (*SMALL_BENCH, "data.max_response_tokens=6", "rollout.max_new_tokens=6")
TIMES = {
    "rollout": {"time/rollout_s", "time/decode_step_ms", "time/decode_limit_ms"}, "score": {"time/score_s"},
    "train": {"time/train_s"},
}  # fmt: skip
TIMES["step3"] = TIMES["rollout"] | TIMES["score"] | TIMES["train"] | {"time/step_s", "time/busy_s"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "random"
    with random_models(load_config(*SMALL), place) as found:
        assert not place.exists()  # nothing is left of what was written
        yield found


@pytest.mark.parametrize("peer", ["null", "deepspeed-chat"])
@pytest.mark.parametrize("what", TIMES)
def test_a_round_tells_what_was_measured_and_nothing_else(models, what, peer):
    config = load_config(*SMALL, f"bench.what={what}", f"bench.peer={peer}")
    once = round_of(config, models)
    for figures in (once(), once()):
        check_metrics("bench", figures)
        assert all(math.isfinite(value) and value > 0 for value in figures.values())
        assert {name for name in figures if name.startswith("time/")} == TIMES[what]
        assert ("throughput/decode_share" in figures) == ("time/rollout_s" in TIMES[what])
        shares = {name.removesuffix("_matrix_share") for name in figures if name.endswith("_matrix_share")}
        measured = ("rollout", "score", "train") if what == "step3" else (what,)
        assert shares == {f"throughput/{phase}" for phase in measured}
        assert all(figures[f"{name}_matrix_share"] < 1.0 for name in shares)
    rate = "throughput/samples_per_s" if what == "step3" else f"throughput/{what}_samples_per_s"
    seconds = "time/step_s" if what == "step3" else f"time/{what}_s"
    assert figures[rate] == pytest.approx(4 / figures[seconds])


@pytest.mark.parametrize("engine", ["hf", "hybrid"])
def test_all_answers_are_as_long_as_the_recipe_says(models, engine, monkeypatch):
    lengths = []
    for overrides in ((), ("bench.lengths=real",)):
        config = load_config(*SMALL, "bench.what=rollout", "bench.peer=null", f"rollout={engine}", *overrides)
        found, asked = [], replace(models, prompts=prompts(config, models.engine.device))
        sampler = models.engine.sampler_of(models.engine.actor, config.rollout)
        own = sampler.generate
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "generate", lambda *given, own=own, found=found: found.append(own(*given)) or found[-1])
            round_of(config, asked)()
        lengths.append((found[0].lengths.tolist(), asked.prompts.limits))
    assert lengths[0] == ([6] * 4, None)
    assert lengths[1][0] == lengths[1][1].tolist()


def test_the_baseline_reads_all_columns_and_all_logits_in_a_pass_of_each_model(models, monkeypatch):
    config = load_config(*SMALL, "bench.lengths=real", "ppo.micro_batch_size=2")
    asked, engine, read = prompts(config, models.engine.device), models.engine, []
    for name in ("actor", "ref", "critic", "reward"):
        model = getattr(engine, name)

        def note(*given, own=model.module.forward, name=name, **inputs):
            found = own(*given, **inputs)
            shape = tuple(getattr(found, "logits", found).shape[:2])
            read.append((name, tuple(inputs["input_ids"].shape), shape))
            return found

        monkeypatch.setattr(model.module, "forward", note)
    trainer = DeepSpeedChatTrainer(engine, config)
    monkeypatch.setattr(trainer, "micro", 2)
    monkeypatch.setattr("rlhf.stages.bench.deepspeed_chat.generate", quiet(read))
    experience = trainer.generate_experience(asked)
    width = 20 + max(asked.limits.tolist())
    names = ("actor", "ref", "reward", "critic")
    assert read == [(name, (2, width), (2, width)) for name in names] * 2
    assert experience.lengths() == list(zip(asked.lengths.tolist(), asked.limits.tolist(), strict=True))


def quiet(read):
    def generate(*given, **named):
        rollout = plain_generate(*given, **named)
        read.clear()  # its own passes
        return rollout

    return generate


def test_the_baseline_finds_what_ours_does_and_learns(models):
    config = load_config(*SMALL, "bench.lengths=real")
    asked, engine = prompts(config, models.engine.device), models.engine
    trainer = DeepSpeedChatTrainer(engine, config)
    experience = trainer.generate_experience(asked)
    ids, mask, said = *experience.sequences(), experience.mask
    with torch.no_grad():
        logprobs, _ = response_logprobs(engine.actor, ids, mask, said.size(1), 1.0)
        reference, _ = response_logprobs(engine.ref, ids, mask, said.size(1), 1.0)
        values = response_values(engine.critic, ids, mask, said.size(1))
        scores = response_scores(engine.reward, ids, mask)
    for own, theirs in ((logprobs, experience.logprobs * said), (reference, experience.reference_logprobs * said)):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, experience.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, experience.scores, atol=1e-4, rtol=1e-4)
    rewards = torch.zeros_like(logprobs)
    rewards[torch.arange(4), said.sum(1) - 1] = scores
    rewards -= config.ppo.kl_coef * (logprobs - reference)
    advantages, _ = advantages_and_returns(rewards, values, said, config.ppo.gamma, config.ppo.gae_lambda)
    torch.testing.assert_close(advantages * said, experience.advantages * said, atol=1e-3, rtol=1e-3)
    steps = engine.actor.global_steps, engine.critic.global_steps
    trainer.train_rlhf(experience)
    assert trainer.metrics["train/nonfinite"] == 0.0
    assert (engine.actor.global_steps, engine.critic.global_steps) == (steps[0] + 1, steps[1] + 1)


def test_the_share_of_the_matrix_rate_is_of_the_time_that_the_device_worked(models, monkeypatch):
    monkeypatch.setattr("rlhf.stages.bench.rounds.matrix_tflops", lambda device, dtype: 0.2)
    clock = Clock({"score": 10.0}, {"score": 2.0})
    figures = matrix_metrics(load_config(*SMALL), {"throughput/score_tflops_per_gpu": 0.02, "time/score_s": 10.0}, clock)
    assert figures == {"throughput/matrix_tflops": 0.2, "throughput/score_matrix_share": pytest.approx(0.2 / 2 / 0.2)}


def test_a_phase_that_waits_takes_time_but_works_none():
    clock = Clock()
    with clock.phase("score"):
        time.sleep(0.1)
    assert clock.seconds["score"] >= 0.1 and clock.busy["score"] < 0.05


def test_bandwidth_is_what_is_read_over_the_time(models):
    config = load_config(*SMALL)
    asked, said, seconds = [20, 10], [6, 3], 0.5
    figures = decode_metrics(config, asked, said, seconds, models)
    read, copy = decode_bytes(config.model, "fp32", asked, said), copy_gb_s(models.engine.device)
    assert figures["time/decode_step_ms"] == pytest.approx(500 / 6)
    assert figures["throughput/decode_gb_s"] == pytest.approx(read / 0.5 / 1e9)
    assert figures["throughput/copy_gb_s"] == copy > 1
    assert figures["throughput/decode_share"] == pytest.approx(read / 0.5 / 1e9 / copy)
    assert figures["time/decode_limit_ms"] == pytest.approx(1e3 * read / 6 / (copy * 1e9))


def test_updates_that_are_left_out_are_no_measurement(models, monkeypatch):
    once = round_of(load_config(*SMALL, "bench.what=train", "bench.peer=null"), models)
    monkeypatch.setattr("rlhf.ppo.trainer.first_nonfinite", lambda experience: "a score")
    with pytest.raises(FloatingPointError, match="not finite"):
        once()
