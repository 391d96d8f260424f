"""Rounds of step 3 and of its phases on a tiny model."""

import math
from dataclasses import replace

import pytest
from support.small import SMALL_BENCH

from rlhf.catalog.stage import check_metrics
from rlhf.cli.prepare import load_config
from rlhf.planner.decode import decode_bytes
from rlhf.runtime.device import copy_gb_s
from rlhf.stages.bench.inputs import prompts
from rlhf.stages.bench.rounds import decode_metrics, random_models, round_of

SMALL = (*SMALL_BENCH, "data.max_response_tokens=6", "rollout.max_new_tokens=6")
TIMES = {
    "rollout": {"time/rollout_s", "time/decode_step_ms", "time/decode_limit_ms"}, "score": {"time/score_s"},
    "train": {"time/train_s"},
}  # fmt: skip
TIMES["step3"] = TIMES["rollout"] | TIMES["score"] | TIMES["train"] | {"time/step_s"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "random"
    with random_models(load_config(*SMALL), place) as found:
        assert not place.exists()  # nothing is left of what was written
        yield found


@pytest.mark.parametrize("what", TIMES)
def test_a_round_tells_what_was_measured_and_nothing_else(models, what):
    config = load_config(*SMALL, f"bench.what={what}")
    once = round_of(config, models)
    for figures in (once(), once()):
        check_metrics("bench", figures)
        assert all(math.isfinite(value) and value > 0 for value in figures.values())
        assert {name for name in figures if name.startswith("time/")} == TIMES[what]
        assert ("throughput/decode_share" in figures) == ("time/rollout_s" in TIMES[what])
    rate = "throughput/samples_per_s" if what == "step3" else f"throughput/{what}_samples_per_s"
    seconds = "time/step_s" if what == "step3" else f"time/{what}_s"
    assert figures[rate] == pytest.approx(4 / figures[seconds])


@pytest.mark.parametrize("engine", ["hf", "hybrid"])
def test_all_answers_are_as_long_as_the_recipe_says(models, engine, monkeypatch):
    lengths = []
    for overrides in ((), ("bench.lengths=real",)):
        config = load_config(*SMALL, "bench.what=rollout", f"rollout={engine}", *overrides)
        found, asked = [], replace(models, prompts=prompts(config, models.engine.device))
        sampler = models.engine.sampler_of(models.engine.actor, config.rollout)
        own = sampler.generate
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "generate", lambda *given, own=own, found=found: found.append(own(*given)) or found[-1])
            round_of(config, asked)()
        lengths.append((found[0].lengths.tolist(), asked.prompts.limits))
    assert lengths[0] == ([6] * 4, None)
    assert lengths[1][0] == lengths[1][1].tolist()


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
    once = round_of(load_config(*SMALL, "bench.what=train"), models)
    monkeypatch.setattr("rlhf.ppo.trainer.first_nonfinite", lambda experience: "a score")
    with pytest.raises(FloatingPointError, match="not finite"):
        once()
