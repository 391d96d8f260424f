"""Random tokens of the recipe's lengths."""

import pytest
import torch

from rlhf.stages.bench.inputs import comparisons, demonstrations, draw_lengths, prompts

CPU = torch.device("cpu")


def test_fixed_lengths_are_as_long_as_they_may_be(make_config):
    config = make_config("+experiments=bench")
    batch = prompts(config, CPU)
    assert batch.ids.shape == (32, 256)
    assert batch.lengths.tolist() == [256] * 32
    assert batch.limits is None  # rollout.fixed_length keeps answers from ending
    assert {len(pair.prompt) + len(pair.response) for pair in demonstrations(config, 3)} == {512}


def test_real_lengths_have_a_long_tail_over_a_short_middle(make_config):
    config = make_config("+experiments=bench", "bench.lengths=real")
    lengths = sorted(draw_lengths(config, "answers", 2000, 300))
    assert (min(lengths) >= 4, lengths[-1]) == (True, 300)
    assert lengths[1000] == pytest.approx(100, rel=0.1)
    assert lengths[1500] / lengths[500] == pytest.approx(2.57, rel=0.15)  # exp(2 * 0.674 * 0.7)
    assert lengths != draw_lengths(config, "prompts", 2000, 300)


def test_the_same_seed_gives_the_same_texts(make_config):
    config = make_config("+experiments=bench", "bench.lengths=real")
    first, second = prompts(config, CPU), prompts(config, CPU)
    assert torch.equal(first.ids, second.ids) and torch.equal(first.limits, second.limits)
    config.seed = 1
    assert not torch.equal(first.lengths, prompts(config, CPU).lengths)


def test_ranks_share_one_global_batch(make_config, monkeypatch):
    config = make_config("+experiments=bench", "bench.lengths=real")
    whole, pairs, compared = prompts(config, CPU), demonstrations(config, 8), comparisons(config, 8)
    config.hardware.gpus_per_node = 2
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("rlhf.stages.bench.inputs.rank", lambda rank=rank: rank)
        parts.append((prompts(config, CPU), demonstrations(config, 8), comparisons(config, 8)))
    assert torch.cat([part.lengths for part, *_ in parts]).tolist() == whole.lengths.tolist()
    assert torch.cat([part.limits for part, *_ in parts]).tolist() == whole.limits.tolist()
    assert [sample for part, *_ in parts for sample in part.samples] == whole.samples
    assert parts[0][1] + parts[1][1] == pairs
    assert parts[0][2] + parts[1][2] == compared


def test_both_answers_of_a_comparison_follow_one_prompt(make_config):
    for ((better, other),) in comparisons(make_config("+experiments=bench", "bench.lengths=real"), 8):
        assert better.prompt == other.prompt and better.response != other.response
