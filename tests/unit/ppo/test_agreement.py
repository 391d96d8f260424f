"""A sampler or an update that computes another function than the trainer is told of, or stops the run."""

import math
import re
from dataclasses import replace

import pytest
import torch
from support.small import SMALL_PPO
from support.tiny_models import built

from rlhf.config.keys import KEYS
from rlhf.ppo.agreement import FATAL, SAMPLER_TOLERANCE, check_first_ratio, check_sampler
from rlhf.rollout.hybrid.decoder import Decoder
from rlhf.rollout.hybrid.sampler import HybridSampler

SMALL = (*SMALL_PPO, "ppo.batch_size=8", "ppo.max_steps=3", "rollout.fixed_length=true", "ppo.eos_penalty=null")
TOKENS = 64


@pytest.fixture
def build(make_config, models, tokenizer):
    """Prompt batches and a trainer of these options."""

    def make(*overrides):
        loader, engine, trainer = built(make_config(*SMALL, *overrides), models, tokenizer)
        return list(loader), engine, trainer

    return make


def shift(monkeypatch, amount):
    """Have the sampler report log-probabilities that are off by an amount."""

    def shifted(*given):
        responses = plain(*given)
        return replace(responses, logprobs=responses.logprobs + amount)

    plain = HybridSampler.generate
    monkeypatch.setattr(HybridSampler, "generate", shifted)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("precision=bf16",),
        ("rollout.top_k=20", "rollout.top_p=0.8", "rollout.temperature=0.2", "rollout.repetition_penalty=1.5"),
        ("rollout.do_sample=false",),
        ("rollout.fixed_length=false", "rollout.min_new_tokens=5", "rollout.temperature=50.0", "rollout.stop=[e]"),
        ("ppo.dropout=0.3", "ppo.ratio_tolerance=10.0"),
        ("lora=r8",),
    ],
)
def test_a_right_sampler_is_not_complained_of(build, capsys, options):
    batches, _, trainer = build(*options)
    for batch in batches[:2]:
        trainer.train_rlhf(trainer.generate_experience(batch))
    assert "warning" not in capsys.readouterr().out
    assert trainer.metrics["policy/sampler_gap"] < (0.05 if "precision=bf16" in options else 1e-4)


def test_a_response_that_is_cut_at_a_limit_is_not_complained_of(build):
    """Benchmarks end responses at given lengths: the sampler's log-probability is that of the end-of-text it takes."""
    batches, _, trainer = build("rollout.fixed_length=false")
    trainer.generate_experience(replace(batches[0], limits=torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])))
    assert trainer.metrics["policy/sampler_gap_max"] < 1e-4


def test_a_sampler_with_other_weights_stops_the_run(build, monkeypatch):
    batches, engine, trainer = build()

    def with_other_weights(*given):
        kept = [parameter.detach().clone() for parameter in engine.actor.module.parameters()]
        with torch.no_grad():
            for parameter in engine.actor.module.parameters():
                parameter.mul_(1.5)
            responses = plain(*given)
            for parameter, former in zip(engine.actor.module.parameters(), kept, strict=True):
                parameter.copy_(former)
        return responses

    plain = HybridSampler.generate
    monkeypatch.setattr(HybridSampler, "generate", with_other_weights)
    with pytest.raises(RuntimeError) as error:
        trainer.generate_experience(batches[0])
    assert re.match(
        r"rollout 0: the sampler's log-probabilities are .* more than 10 times ppo.sampler_tolerance=0.001: rollout=hybrid "
        r".*; try rollout=hf, or set ppo.sampler_tolerance",
        str(error.value),
    )


def test_a_sampler_with_wrong_positions_stops_the_run(build, models, monkeypatch):
    batches, engine, trainer = build()
    with torch.no_grad():  # random weights hardly look at positions
        engine.actor.module.model.decoder.embed_positions.weight.mul_(20.0)
    begin = Decoder.begin

    def begin_late(self, *given):
        begin(self, *given)
        self.position.add_(3)

    monkeypatch.setattr(Decoder, "begin", begin_late)
    with pytest.raises(RuntimeError, match="another distribution than the policy's"):
        trainer.generate_experience(batches[0])


@pytest.mark.parametrize("amount", [float("nan"), float("inf")])
def test_a_sampler_whose_numbers_are_not_finite_stops_the_run(build, monkeypatch, amount):
    batches, _, trainer = build()
    shift(monkeypatch, amount)
    with pytest.raises(RuntimeError, match="another distribution than the policy's"):
        trainer.generate_experience(batches[0])


@pytest.mark.parametrize(
    ("options", "amount"), [((), 5e-3), (("precision=bf16",), 0.2), (("ppo.sampler_tolerance=1.0",), 3)]
)
def test_a_sampler_that_is_somewhat_off_is_told_of_once_a_rollout(build, monkeypatch, capsys, options, amount):
    batches, _, trainer = build(*options)
    shift(monkeypatch, amount)
    for batch in batches[:2]:
        trainer.train_rlhf(trainer.generate_experience(batch))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line.partition(":")[2].partition(":")[0].strip() for line in told] == ["rollout 0", "rollout 1"]
    assert all("more than ppo.sampler_tolerance=" in line for line in told)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_bounds_are_those_of_the_number_format(make_config, capsys, dtype):
    config, bound = make_config(f"precision={dtype}"), SAMPLER_TOLERANCE[dtype]
    check_sampler(config, 0, bound, 100.0)  # whatever the largest is
    assert capsys.readouterr().out == ""
    check_sampler(config, 0, FATAL * bound, 100.0)
    assert "warning" in capsys.readouterr().out
    with pytest.raises(RuntimeError):
        check_sampler(config, 0, 1.01 * FATAL * bound, 100.0)


def test_what_rounds_more_has_wider_bounds(make_config, capsys):
    sharp, quantized = make_config("rollout.temperature=0.1"), make_config("zero='3'")
    quantized.zero.zero_quantized_weights = True
    check_sampler(sharp, 0, 9e-3, 0.1)
    check_sampler(quantized, 0, 0.04, 0.1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "off", "outcome"),
    [
        ((), 1e-2, "stops"),  # mean 1.6e-4: a single token is enough in fp32
        (("precision=bf16",), 1.0, "warns"),  # mean 0.016
        (("precision=bf16",), 2.0, "stops"),  # mean 0.031
        (("precision=bf16", "ppo.micro_batch_size=1"), 1.0, "warns"),  # of a micro-batch's eight tokens it would be 0.125
        (("ppo.ratio_tolerance=0.1",), 1e-2, "passes"),
    ],
)
def test_one_token_off_in_the_first_mini_batch(build, capsys, options, off, outcome):
    batches, engine, trainer = build(*options)
    experience = trainer.generate_experience(batches[0])
    assert int(experience.mask.sum()) == TOKENS
    experience.logprobs[3, 0] += off
    before = [parameter.detach().clone() for parameter in engine.actor.module.parameters()]
    if outcome == "stops":
        with pytest.raises(RuntimeError, match=r"the first mini-batch gives log-probabilities .* not compute the same"):
            trainer.train_rlhf(experience)
        after = engine.actor.module.parameters()
        assert all(torch.equal(*weights) for weights in zip(before, after, strict=True))
        return
    trainer.train_rlhf(experience)
    assert ("warning: rollout 0: the first mini-batch" in capsys.readouterr().out) == (outcome == "warns")


def test_an_update_that_is_not_finite_is_left_to_be_left_out(make_config):
    check_first_ratio(make_config(), 0, math.nan, 0.0)


def test_accepting_more_does_not_begin_a_stage_anew():
    assert {KEYS[f"ppo.{key}_tolerance"].effect for key in ("ratio", "sampler")} == {"name"}
