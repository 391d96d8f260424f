import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.data.loaders import (
    PromptLoader,
    all_batches,
    create_prompt_dataloader,
    epoch_batches,
    evenly,
    local_share,
    steps_per_epoch,
    total_steps,
)
from rlhf.data.tokens import left_mask


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 5))
def test_a_pass_takes_no_record_twice_and_only_the_remainder_sits_out(records, batch_size, epoch):
    batches = epoch_batches(records, batch_size, 0, "sft", epoch)
    taken = [record for batch in batches for record in batch]
    assert all(len(batch) == batch_size for batch in batches)
    assert len(taken) == len(set(taken)) == records - records % batch_size
    assert set(taken) <= set(range(records))


def test_those_who_sit_out_differ_from_pass_to_pass():
    left_over = [set(range(10)) - {r for b in epoch_batches(10, 4, 0, "sft", epoch) for r in b} for epoch in range(12)]
    assert all(len(records) == 2 for records in left_over)
    assert set.union(*left_over) == set(range(10))


def test_order_differs_between_passes_seeds_and_stages_but_not_between_calls():
    orders = [epoch_batches(40, 8, *name) for name in ((0, "sft", 0), (0, "sft", 1), (1, "sft", 0), (0, "ppo", 0))]
    assert all(first != second for i, first in enumerate(orders) for second in orders[i + 1 :])
    assert epoch_batches(40, 8, 0, "sft", 1) == orders[1]


def test_batches_go_on_pass_after_pass_and_stop_at_the_last_step():
    found = list(all_batches(10, 4, 0, "sft", steps=5))
    assert found == [b for epoch in range(3) for b in epoch_batches(10, 4, 0, "sft", epoch)][:5]
    assert list(all_batches(10, 4, 0, "sft", steps=3)) == found[:3]  # a longer run begins as a shorter one


@given(st.integers(1, 10), st.sampled_from([1, 2, 4]))
def test_the_shares_of_all_ranks_make_up_the_global_batch(per_four, world):
    batch = list(range(100, 100 + 4 * per_four))
    shares = [local_share(batch, rank, world) for rank in range(world)]
    assert [record for part in shares for record in part] == batch
    assert {len(part) for part in shares} == {len(batch) // world}


@given(st.integers(0, 40), st.sampled_from([1, 2, 4]), st.integers(1, 5))
def test_held_out_items_all_count_once_and_ranks_take_equally_many(items, world, micro):
    plan = Batches(world, 8, micro, 8 // micro)
    ranks = [evenly(list(range(items)), plan, rank) for rank in range(world)]
    pairs = [pair for parts in ranks for part, weights in parts for pair in zip(part, weights.tolist(), strict=True)]
    assert [item for item, weight in pairs if weight == 1.0] == list(range(items))
    assert [weight for _, weight in pairs if weight != 1.0] == [0.0] * (-items % world)
    shapes = [[len(part) for part, _ in parts] for parts in ranks]
    assert shapes == [shapes[0]] * world  # the same forward passes on every rank
    assert all(1 <= size <= micro for size in shapes[0])


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(3, None, 9), (3, 4, 4), (3, 100, 9), (1.5, None, 5), (0.01, None, 1), (1e-9, None, 1), (0.7, None, 3)],
)
def test_training_ends_by_passes_or_by_steps(epochs, max_steps, steps):
    """Parts of a pass are rounded up to whole batches."""
    assert total_steps(31, 10, epochs, max_steps, "sft.batch_size") == steps


def test_too_few_records_name_the_key_and_a_value_that_works():
    with pytest.raises(ConfigError, match=r"^sft\.batch_size=16: .*only 10 records.*; try 10$"):
        steps_per_epoch(10, 16, "sft.batch_size")
    assert steps_per_epoch(10, 10, "sft.batch_size") == 1


def test_no_records_at_all_do_not_suggest_an_empty_batch():
    """Files without a `response` column leave none; no batch size is small enough for that."""
    with pytest.raises(ConfigError) as error:
        steps_per_epoch(0, 16, "sft.batch_size")
    assert not re.search(r"try 0\b", str(error.value))


def prompt_loader(make_config, world, *overrides, rank=0):
    config = make_config("ppo.rollout_batch_size=8", "ppo.batch_size=8", f"hardware.gpus_per_node={world}", *overrides)
    return PromptLoader(config, [[10 + n] * (1 + n % 5) for n in range(21)], pad=0, rank=rank)


def flat(batches):
    """Every rollout as its rows without padding, and the rows' sample numbers."""
    rows = []
    for batch in batches:
        mask = left_mask(batch.lengths, batch.ids.size(1))
        rows += [
            (ids[keep.bool()].tolist(), sample) for ids, keep, sample in zip(batch.ids, mask, batch.samples, strict=True)
        ]
    return rows


@pytest.mark.parametrize("world", [2, 4])
def test_rollouts_do_not_depend_on_the_number_of_ranks(make_config, world):
    alone = list(prompt_loader(make_config, 1))
    ranks = [list(prompt_loader(make_config, world, rank=rank)) for rank in range(world)]
    for step, whole in enumerate(alone):
        assert flat(rank[step] for rank in ranks) == flat([whole])
        assert [sample for _, sample in flat([whole])] == list(range(8))


def test_prompt_loader_knows_its_length_and_can_be_read_again(make_config):
    loader = prompt_loader(make_config, 1, "ppo.epochs=3")
    first = list(loader)
    assert len(loader) == len(first) == 3 * 2  # 21 prompts are two rollouts of 8
    assert flat(loader) == flat(first)
    assert len(prompt_loader(make_config, 1, "ppo.max_steps=5")) == 5


def test_prompt_loader_needs_a_rollout_of_prompts(make_config):
    with pytest.raises(ConfigError, match=r"^ppo\.rollout_batch_size=32: .*; try 21$"):
        prompt_loader(make_config, 1, "ppo.rollout_batch_size=32")


def test_prompt_dataloader_encodes_the_training_prompts_that_fit(make_config, tokenizer, demo_data):
    config = make_config("data.demo.demonstrations=300", "data.demo.rounds=1")  # as many prompts, fewer answers
    everything = create_prompt_dataloader(config, tokenizer)
    assert len(everything.prompts) == len(demo_data.train.prompts)
    first = next(iter(everything))
    assert first.ids.device == torch.device("cpu")
    text = tokenizer.decode(first.ids[0, -int(first.lengths[0]) :])
    assert text.removeprefix("Human: ").removesuffix("\n\nAssistant:") in demo_data.train.prompts

    config.data.truncation = "drop"
    config.data.max_prompt_tokens = sorted(map(len, everything.prompts))[100]
    fitting = create_prompt_dataloader(config, tokenizer)
    assert list(fitting.prompts) == [ids for ids in everything.prompts if len(ids) <= config.data.max_prompt_tokens]


@pytest.mark.parametrize("world", [1, 2])
def test_each_prompt_stands_once_for_each_of_its_responses(make_config, world):
    config = make_config(
        "ppo.rollout_batch_size=12", "ppo.batch_size=12", "rollout.samples_per_prompt=3", f"hardware.gpus_per_node={world}"
    )
    prompts = [[number] * (1 + number % 3) for number in range(1, 11)]
    loaders = [PromptLoader(config, prompts, 0, rank) for rank in range(world)]
    assert len(loaders[0]) == 7  # 10 / 3 passes of 10 * 3 // 12 rollouts, rounded up: as many responses as in ten passes
    for batches in zip(*loaders, strict=True):
        assert [sample for batch in batches for sample in batch.samples] == list(range(12))
        rows = [ids[-length:] for batch in batches for ids, length in zip(batch.ids.tolist(), batch.lengths, strict=True)]
        assert all(batch.copies == 3 for batch in batches)
        assert all(rows[start : start + 3] == [rows[start]] * 3 for start in range(0, 12, 3))
        assert len({tuple(row) for row in rows}) == 4
