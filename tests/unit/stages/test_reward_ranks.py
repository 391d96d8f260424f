"""Ranks whose prompts have unlike numbers of answers, or whose records have unlike lengths, make equally many passes, and
come to the gradient of whole batches. Started as a script this file is one rank."""

import json
import os
import sys

import pytest
from support.ranks import run_script

pytestmark = pytest.mark.rounding

ZEROS = ("0", "2", "3")
WHOLE, SPLIT = "100", "2"
BUDGETS = (1000, 16)


@pytest.fixture(scope="module")
def printed():
    return [json.loads(output.splitlines()[-1]) for output in run_script(__file__, 2)]


@pytest.mark.parametrize("zero", ZEROS)
def test_unlike_prompts_on_two_ranks(printed, zero):
    assert printed[0] == printed[1]
    whole, split = printed[0][zero][WHOLE], printed[0][zero][SPLIT]
    assert len(whole) == 2
    for step, other in zip(whole, split, strict=True):
        assert other == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("zero", ZEROS)
def test_unlike_lengths_on_two_ranks(printed, zero):
    assert printed[0] == printed[1]
    whole, split = (printed[0][zero][f"sft {tokens}"] for tokens in BUDGETS)
    for step, other in zip(whole, split, strict=True):
        assert other == pytest.approx(step, rel=1e-4)


def sft_steps(zero, tokens):
    """The metrics of two steps of so many tokens a pass: rank 0 has long records, rank 1 short ones."""
    from support.tiny_models import learning_engine, smooth_opt

    from rlhf.config.points import compose_config
    from rlhf.data.encoded import Encoded
    from rlhf.engine.zero import release, set_rates
    from rlhf.planner.batches import batches
    from rlhf.runtime.distributed import rank, start
    from rlhf.stages.bench.rounds import train_toy_tokenizer
    from rlhf.stages.sft.train import train_step

    words = f"zero='{zero}'", "zero.stage3_param_persistence_threshold=0", "hardware.gpus_per_node=2", "sft.batch_size=6"
    config = compose_config(*words, f"sft.micro_batch_tokens={tokens}")
    start(config)
    with smooth_opt():
        engine = learning_engine(config, train_toy_tokenizer(config))
    set_rates(engine, 1.0)
    items = [Encoded([5, 9], [20 + number] * ((12 if rank() == 0 else 2) + number)) for number in range(3)]
    found = [train_step(engine, items, batches(config, "sft"), config, 0) for _ in range(2)]
    release(engine)
    return found


def steps(zero, answers):
    """The metrics of two steps that read so many answers at a time: rank 0 has one prompt with 7, rank 1 one with 2."""
    from support.tiny_models import learning_scorer, pairs_of_answers, smooth_opt

    from rlhf.config.points import compose_config
    from rlhf.engine.zero import release, set_rates
    from rlhf.runtime.distributed import rank, start
    from rlhf.stages.bench.rounds import train_toy_tokenizer
    from rlhf.stages.reward.train import train_step

    config = compose_config(
        f"zero='{zero}'", "zero.stage3_param_persistence_threshold=0", "hardware.gpus_per_node=2", "reward.batch_size=2"
    )
    start(config)
    with smooth_opt():
        engine = learning_scorer(config, train_toy_tokenizer(config))
    set_rates(engine, 1.0)
    found = [train_step(engine, [pairs_of_answers(5, 7 if rank() == 0 else 2)], 2, answers, 0)[0] for _ in range(2)]
    release(engine)
    return found


if __name__ == "__main__":
    made = {zero: {answers: steps(zero, int(answers)) for answers in (WHOLE, SPLIT)} for zero in ZEROS}
    for zero in ZEROS:
        made[zero] |= {f"sft {tokens}": sft_steps(zero, tokens) for tokens in BUDGETS}
    print(json.dumps(made))
    sys.stdout.flush()
    os._exit(0)
