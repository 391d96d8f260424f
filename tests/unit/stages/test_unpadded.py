"""Fine-tuning and reward modelling without padding come to what padded passes come to."""

import pytest
import torch
from support.quick import mark_slow
from support.rounding import assert_close, assert_same_gradients
from support.tiny_models import learning_engine, learning_scorer, smooth_opt

from rlhf.data.encoded import Encoded
from rlhf.data.loaders import balanced_share
from rlhf.data.tokens import sequence_batch
from rlhf.engine.zero import backward, release
from rlhf.planner.batches import batches
from rlhf.runtime.compat.deepspeed import local_shard
from rlhf.stages.reward.comparisons import read_scores, train_on_comparisons
from rlhf.stages.sft.train import loss_of, share_items, train_step

pytestmark = pytest.mark.rounding

FAMILIES = (
    "opt", "bloom", "gpt-neox", "gptj", "gpt-neo", "gpt2", "codegen", "llama", "qwen2", "qwen3", "mistral", "gemma2",
)  # fmt: skip
# A family for each kind of positions and of attention.
QUICK = ("opt", "bloom", "gpt-neo", "gemma2")
LENGTHS = ((3, 9), (1, 1), (14, 2), (5, 5), (2, 12), (7, 3))
WAYS = ("none", "length", "packed")


def records():
    """Prompts with responses of unlike lengths."""
    draw = torch.Generator().manual_seed(0)
    token = lambda count: torch.randint(5, 300, (count,), generator=draw).tolist()  # noqa: E731
    return [Encoded(token(prompt), token(response)) for prompt, response in LENGTHS]


def gradient(engine):
    """The gradient of each parameter that has one."""
    return [local_shard(parameter.grad).clone() for parameter in engine.module.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("family", mark_slow(FAMILIES, QUICK))
@pytest.mark.parametrize("loss_on", ["completion", "full"])
def test_fine_tuning(make_config, tokenizer, family, loss_on):
    found = {}
    with smooth_opt():
        for packing in WAYS:
            config = make_config(f"model={family}-tiny", f"sft.loss_on={loss_on}", f"sft.packing={packing}")
            engine, sums, read = learning_engine(config, tokenizer), [], []
            engine.train()
            for part in share_items(engine, records(), 4, packing):
                batch = sequence_batch(part, 0, engine.device)
                loss = loss_of(engine, batch, config)
                backward(engine, loss, 6.0)
                sums.append(loss.detach())
                read += part
            assert sorted(read, key=str) == sorted(records(), key=str)
            found[packing] = torch.stack(sums).sum(), gradient(engine)
            release(engine)
    for packing in WAYS[1:]:
        assert_close(found[packing][0], found["none"][0])
        assert_same_gradients(found[packing][1], found["none"][1])


@pytest.mark.parametrize("family", mark_slow(FAMILIES, QUICK))
def test_reward_modelling(make_config, tokenizer, family):
    items = records()
    prompt = items[0].prompt
    answers = [Encoded(prompt, item.response) for item in items]
    elements = [
        [(answers[0], answers[1]), (answers[0], answers[3])],
        [(answers[2], answers[4])],
        [(answers[5], answers[0])],
    ]
    found = {}
    with smooth_opt():
        for packing in WAYS:
            engine = learning_scorer(make_config(f"reward_model={family}-tiny"), tokenizer)
            engine.train()
            reading = train_on_comparisons(engine, elements, 4, 3.0, 0, packing)
            scores = read_scores(engine, sequence_batch(items, 0, engine.device), packing)
            found[packing] = scores.detach(), reading.margins.sort()[0], gradient(engine)
            release(engine)
    for packing in WAYS[1:]:
        for own, padded in zip(found[packing][:2], found["none"][:2], strict=True):
            assert_close(own, padded)
        assert_same_gradients(found[packing][2], found["none"][2])


def test_ranks_get_equally_many_records_of_about_as_many_tokens():
    sizes = [1, 9, 2, 8, 3, 7, 4, 6]
    shares = [balanced_share(list(range(8)), sizes, rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(8)) and len(shares[0]) == len(shares[1])
    tokens = [sum(sizes[record] for record in share) for share in shares]
    assert abs(tokens[0] - tokens[1]) <= 4


@pytest.mark.parametrize("packing", WAYS)
def test_passes_hold_no_more_records_than_asked(make_config, tokenizer, packing):
    config = make_config(f"sft.packing={packing}", "sft.micro_batch_size=4")
    engine = learning_engine(config, tokenizer)
    parts = share_items(engine, records(), batches(config, "sft").micro, packing)
    assert [len(part) for part in parts] in ([4, 2], [3, 3])
    release(engine)


BUDGET = 20


@pytest.mark.parametrize("packing", WAYS)
def test_passes_of_so_many_tokens_come_to_the_same(make_config, tokenizer, packing):
    budgets, found, sizes = (10_000, BUDGET), [], []
    for budget in budgets:
        config = make_config(f"sft.packing={packing}", f"sft.micro_batch_tokens={budget}", "sft.eps=1e-8")
        with smooth_opt():
            engine = learning_engine(config, tokenizer)
        sizes.append(share_items(engine, records(), 4, packing, budget))
        steps = [train_step(engine, records(), batches(config, "sft"), config, 0) for _ in range(2)]
        found.append([value for step in steps for value in step.values()])
        release(engine)
    whole, split = sizes
    assert len(whole) == 1 and len(split) > 2
    for part in split:
        longest, own = max(item.length for item in part), sum(item.length for item in part)
        assert len(part) == 1 or (own if packing == "packed" else len(part) * longest) <= BUDGET
    assert sorted((item for part in split for item in part), key=str) == sorted(records(), key=str)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("packing", WAYS)
def test_comparisons_of_so_many_tokens_come_to_the_same(make_config, tokenizer, packing):
    items = [Encoded(records()[0].prompt, item.response) for item in records()]
    elements = [[(items[0], items[1]), (items[0], items[3]), (items[1], items[3])], [(items[2], items[4])]]
    found = []
    for budget in (10_000, BUDGET):
        with smooth_opt():
            engine = learning_scorer(make_config(), tokenizer)
        engine.train()
        reading = train_on_comparisons(engine, elements, 2, 2.0, 0, packing, tokens=budget)
        found.append((reading.margins.sort()[0], gradient(engine)))
        release(engine)
    assert_close(found[1][0], found[0][0])
    assert_same_gradients(found[1][1], found[0][1])
