"""An update that goes back through the passes of scoring is to the bit the one that reads the rollout again. Started as a
script this file is one rank."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from support.ranks import run_script
from support.small import SMALL_PPO
from support.tiny_models import assert_same_update, built, first_step, gradients, weights

from rlhf.planner.memory import Batch, phase_bytes
from rlhf.planner.ppo import phase_flops
from rlhf.ppo import passes
from rlhf.stages.ppo.checks import reuse_problems

pytestmark = pytest.mark.rounding

REUSE = "ppo.reuse_forward=true"
SMALL = (*SMALL_PPO, "ppo.batch_size=8", "ppo.micro_batch_size=2", "rollout.max_new_tokens=12")
LIMITS = [12, 3, 7, 1, 12, 5, 2, 9]


def step_of(config, models, tokenizer, is_kept, share=slice(None)):
    """Gradients, weights and metrics after a step whose scoring keeps its graphs, or has lost them as by a resume."""
    loader, engine, trainer = built(config, models, tokenizer)
    experience = trainer.generate_experience(replace(next(iter(loader)), limits=torch.tensor(LIMITS[share])))
    assert len(trainer.kept) == engine.batches.accumulation
    if not is_kept:
        trainer.kept = []
    trainer.train_rlhf(experience)
    assert trainer.kept == []
    trained = engine.actor, engine.critic
    found = [*weights(*trained), *gradients(*trained)], trainer.metrics
    engine.release()
    return found


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(("ppo.entropy_coef=0.1", "ppo.gradient_checkpointing=true"), marks=pytest.mark.slow),
        pytest.param(("ppo.packing=length", "ppo.old_logprobs=sampler"), marks=pytest.mark.slow),
        pytest.param(("model=bloom-tiny", "reward_model=bloom-tiny", "ppo.ptx_coef=1.0"), marks=pytest.mark.slow),
    ],
)
def test_one_forward_is_two_to_the_bit(make_config, models, tokenizer, monkeypatch, tmp_path, options):
    if "model=bloom-tiny" in options:
        from support.tiny_models import save_models

        models = save_models(make_config(*options), tokenizer, tmp_path)
    reads, read = [], passes.response_values
    monkeypatch.setattr(passes, "response_values", lambda *given, **more: (reads.append(given[0]), read(*given, **more))[1])
    config = make_config(*SMALL, REUSE, *options)
    kept, again = (step_of(config, models, tokenizer, is_kept) for is_kept in (True, False))
    assert len(reads) == 4 + 8  # four micro-batches once, then twice
    assert all(torch.equal(*pair) for pair in zip(kept[0], again[0], strict=True))
    assert kept[1] == again[1]
    if "ppo.old_logprobs=sampler" not in options:
        assert kept[1]["policy/ratio_first"] == 0.0


def test_the_update_is_the_usual_one_but_for_rounding(make_config, smooth_models, tokenizer):
    assert_same_update(*(first_step(make_config(*SMALL, *word), smooth_models, tokenizer) for word in ((REUSE,), ())))


def test_one_forward_is_two_to_the_bit_on_two_ranks(models):
    printed = [json.loads(output.splitlines()[-1]) for output in run_script(__file__, 2, *models)]
    assert printed == [True, True]


def test_the_plan_knows_what_is_kept_and_what_is_read_once(make_config):
    twice, once = make_config(*SMALL), make_config(*SMALL, REUSE)
    flops = [phase_flops(config, [10], [20]) for config in (twice, once)]
    assert flops[0]["score"] == flops[1]["score"] and 0.6 < flops[1]["update"] / flops[0]["update"] < 0.7
    memory = [phase_bytes(config, "ppo", Batch(2, 8)) for config in (twice, once)]
    for phase, part in (("score", "activations"), ("score", "logits"), ("update", "activations"), ("update", "logits")):
        assert memory[1][phase][part] > memory[0][phase][part]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("ppo.update_epochs=2",), "several updates"),
        (("ppo.batch_size=4",), "several updates"),
        (("ppo.critic_dropout=0.1",), "dropout"),
        (("lora=r8",), "adapters"),
        (("zero='2'",), "ZeRO stage 0"),
        (("ppo.packing=none",), "widths"),
        (("algorithm=grpo", "ppo.old_logprobs=sampler"), "nothing is read"),
    ],
)
def test_what_contradicts_it_is_refused(make_config, overrides, problem):
    assert list(reuse_problems(make_config(*SMALL, REUSE))) == []
    (error,) = reuse_problems(make_config(*SMALL, REUSE, *overrides))
    assert error.key == "ppo.reuse_forward" and problem in str(error)


def main() -> None:
    from rlhf.cli.prepare import load_config
    from rlhf.models.tokenizer import load_tokenizer
    from rlhf.runtime.distributed import leave, rank, start

    models = sys.argv[1:]
    config = load_config(*SMALL, REUSE, "hardware.gpus_per_node=2", "launcher=local")
    start(config)
    share, tokenizer = slice(4 * rank(), 4 * rank() + 4), load_tokenizer(models[0], "ppo.actor")
    kept, again = (step_of(config, models, tokenizer, is_kept, share) for is_kept in (True, False))
    same = all(torch.equal(*pair) for pair in zip(kept[0], again[0], strict=True)) and kept[1] == again[1]
    leave()
    print(json.dumps(same))


if __name__ == "__main__":
    main()
