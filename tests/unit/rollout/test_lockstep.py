"""Ranks whose responses end at very different lengths go on together: at ZeRO 3 each forward pass needs all of them, at
ZeRO 2 the next collective does. Started as a script this file is one rank."""

import json
import os
import sys

import pytest
from support.ranks import run_script

ZEROS = ("2", "3")


@pytest.fixture(scope="module")
def told():
    return [json.loads(output.splitlines()[-1]) for output in run_script(__file__, 2)]


@pytest.mark.parametrize("zero", ZEROS)
def test_ranks_that_end_at_different_lengths_do_not_wait_for_each_other_forever(told, zero):
    printed = [of_rank[zero] for of_rank in told]
    assert printed[0]["lengths"] == [1, 1, 1] and printed[0]["ended"] == [True] * 3
    assert min(printed[1]["lengths"]) > 30
    assert printed[0]["sum"] == printed[1]["sum"] > 0


def rollout(zero):
    """Rank 0 draws end-of-text at once: its number lies just above the probability of the padding token, which comes first
    in the vocabulary."""
    import numpy as np
    import torch
    from support.tiny_models import generate, policy_engine, prompts

    from rlhf.config.points import compose_config
    from rlhf.data.tokenized import DataSource
    from rlhf.models.forward import response_logprobs
    from rlhf.models.tokenizer import build_tokenizer
    from rlhf.runtime.distributed import rank, start, total

    config = compose_config(
        f"zero='{zero}'",
        "zero.stage3_param_persistence_threshold=0",
        "hardware.gpus_per_node=2",
        "rollout.temperature=1000.0",
    )
    start(config)
    tokenizer = build_tokenizer(config.model, "model", DataSource(config))
    policy = policy_engine(config, tokenizer)
    batch = prompts(config, tokenizer)
    number = 1.5 / config.model.vocab_size if rank() == 0 else 0.5
    random = np.full((3, config.rollout.max_new_tokens), number, dtype=np.float32)
    responses = generate(policy, batch, random, tokenizer, config.rollout)
    ids = torch.cat([batch.ids, responses.tokens], 1)
    logprobs, _ = response_logprobs(policy, ids, torch.ones_like(ids), responses.tokens.size(1), 1.0)
    (together,) = total(float(-logprobs.sum()))
    return {"lengths": responses.lengths.tolist(), "ended": responses.ended.tolist(), "sum": together}


if __name__ == "__main__":
    print(json.dumps({zero: rollout(zero) for zero in ZEROS}))
    sys.stdout.flush()
    os._exit(0)
