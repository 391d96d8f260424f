"""Operations of PPO's own passes, as PyTorch counts them: the pre-training loss, and rollouts whose prompts have several
responses. Products with weights are compared, which do not depend on how a sampler or a kernel pads attention."""

from dataclasses import replace

import numpy as np
import pytest
from support.small import SMALL_PPO
from support.tiny_models import built, generate, learning_engine, policy_engine, prompts
from torch.utils.flop_counter import FlopCounterMode

from rlhf.catalog.stage import kind_of
from rlhf.planner.cache import cached_tokens, count_prefilled, list_prompts_read
from rlhf.planner.flops import generation_flops, training_flops
from rlhf.planner.ppo import longest_rollout, longest_step, phase_flops
from rlhf.ppo.metrics import UpdateMetrics
from rlhf.ppo.passes import text_gradient

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def count_products(work):
    """Operations of the products of matrices in `work`, by PyTorch; attention is a fused kernel of its own."""
    with FlopCounterMode(display=False) as counter:
        work()
    found = counter.get_flop_counts().get("Global", {})
    return sum(flops for op, flops in found.items() if op.__name__.split(".")[0] in PRODUCTS)


def attention_pairs(model, pairs, per_pair):
    """Operations of attention over pairs of tokens and positions: 4 H D in a forward pass, 8 more in a backward pass."""
    return per_pair * model.num_hidden_layers * model.num_attention_heads * model.head_dim * pairs


@pytest.mark.parametrize("words", [(), ("lora=r8",), ("ppo.gradient_checkpointing=true",)], ids=["plain", "lora", "again"])
def test_the_pretraining_loss_is_what_pytorch_counts(make_config, models, tokenizer, words):
    config = make_config(*SMALL_PPO, "ppo.ptx_coef=1.0", "ppo.micro_batch_size=1", *words)
    _, engine, trainer = built(config, models, tokenizer)
    metrics, (batches, count) = UpdateMetrics(), trainer.texts.batches(0)
    engine.actor.train()  # as the loss of the policy, which comes first, does

    def update():
        for texts in batches:  # one text each: without padding
            text_gradient(engine, config, texts, count, metrics)

    counted, lengths = count_products(update), metrics.text_lengths
    how = config.lora, config.ppo.gradient_checkpointing, config.ppo.dropout
    planned = training_flops(config.model, lengths, sum(lengths), *how)
    pairs = training_flops(config.model, lengths, 0, *how) - sum(
        length * training_flops(config.model, [1], 0, *how) for length in lengths
    )
    per_token_pair = pairs / sum(length**2 - length for length in lengths)
    assert counted == pytest.approx(planned - per_token_pair * sum(length**2 for length in lengths), rel=1e-4)
    whole = phase_flops(config, [8], [4], lengths)["update"] - phase_flops(config, [8], [4])["update"]
    assert whole == planned


@pytest.mark.parametrize(
    ("copies", "words"),
    [(1, {}), (3, {}), (3, {"micro_batch_size": 4}), (3, {"engine": "hf"})],
    ids=["alone", "shared", "shared in parts", "hf"],
)
def test_rollouts_are_what_pytorch_counts(make_config, tokenizer, copies, words):
    config = make_config("rollout.max_new_tokens=6", "rollout.fixed_length=true", "ppo.eos_penalty=null")
    rollout = replace(config.rollout, samples_per_prompt=copies, **words)
    texts = ["clean a kettle", "clean a lamp", "clean a lamp", "clean a kettle"]  # alike, and yet not copies
    engine = policy_engine(config, tokenizer)
    batch = replace(prompts(config, tokenizer, [text for text in texts for _ in range(copies)]), copies=copies)
    numbers = np.random.default_rng(0).random((len(batch.samples), 6), dtype=np.float32)
    generate(engine, batch, numbers, tokenizer, rollout)  # the first step of a process is compared with transformers'
    counted = count_products(lambda: generate(engine, batch, numbers, tokenizer, rollout))
    lengths, model = batch.lengths.tolist(), config.model
    widest = [max(lengths)] * len(lengths) if rollout.engine == "hf" else lengths  # which pads prompts to one width
    read = list_prompts_read(rollout, widest)
    planned = generation_flops(model, widest, [6] * len(widest), None, read)
    pairs = sum(length**2 for length in read) + sum(5 * length + 15 for length in widest)
    assert counted == pytest.approx(planned - attention_pairs(model, pairs, 4), rel=1e-4)
    if copies > 1 and rollout.engine == "hybrid":
        assert len(read) < len(lengths)


def test_adapters_are_merged_for_a_rollout(make_config, tokenizer):
    """And cost nothing there, but by a sampler that reads them as they are."""
    config = make_config("lora=r8", "rollout.max_new_tokens=6", "rollout.fixed_length=true", "ppo.eos_penalty=null")
    engine, numbers = learning_engine(config, tokenizer), np.full((1, 6), 0.5, dtype=np.float32)
    batch = prompts(config, tokenizer, ["clean a kettle"])
    for name in ("hybrid", "hf"):
        own = replace(config, rollout=replace(config.rollout, engine=name))
        counted = count_products(lambda rollout=own.rollout: generate(engine, batch, numbers, tokenizer, rollout))
        (length,) = batch.lengths.tolist()
        planned = phase_flops(own, [length], [6])["rollout"]
        products = planned - attention_pairs(config.model, length**2 + 5 * length + 15, 4)
        assert counted == pytest.approx(products, rel=1e-3), name


def test_copies_of_a_prompt_that_lie_in_two_parts_are_read_twice(make_config):
    rollout = make_config("rollout.samples_per_prompt=4").rollout
    lengths = [7] * 4 + [9] * 4 + [5] * 4
    assert list_prompts_read(replace(rollout, micro_batch_size=None), lengths) == [9, 7, 5]
    assert list_prompts_read(replace(rollout, micro_batch_size=6), lengths) == [9, 7, 7, 5]
    assert list_prompts_read(replace(rollout, micro_batch_size=1), lengths) == [9] * 4 + [7] * 4 + [5] * 4
    assert list_prompts_read(replace(rollout, engine="hf"), lengths) == lengths


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("rollout.samples_per_prompt=4",),
        ("lora=r8", "ppo.ptx_coef=1"),
        ("rollout.micro_batch_size=8",),
        ("algorithm=remax",),
    ],
)
def test_two_groups_of_responses_tell_the_work_of_a_whole_batch(make_config, words):
    config = make_config(*words)
    assert longest_step(config) == longest_rollout(config, config.ppo.rollout_batch_size)


def test_more_responses_to_a_prompt_are_less_work(make_config):
    one, four = (make_config(f"rollout.samples_per_prompt={copies}", "ppo.rollout_batch_size=64") for copies in (1, 4))
    first, shared = longest_step(one), longest_step(four)
    assert shared["rollout"] < first["rollout"]
    assert {phase: shared[phase] for phase in ("score", "update")} == {phase: first[phase] for phase in ("score", "update")}


def test_a_cache_has_the_rows_and_slots_that_the_sampler_makes(make_config):
    rollout = make_config().rollout
    assert cached_tokens(rollout, "cpu", 20, 100) == 20 * 128
    assert cached_tokens(rollout, "cuda", 20, 300) == 24 * 384
    assert cached_tokens(replace(rollout, engine="paged"), "cuda", 20, 300) == 20 * 512
    assert cached_tokens(replace(rollout, engine="hf"), "cuda", 20, 300) == 20 * 300
    assert count_prefilled(rollout, 256, 256, together=False) == 2**14
    assert count_prefilled(rollout, 256, 256, together=True) == 2**16
    assert count_prefilled(replace(rollout, samples_per_prompt=64), 256, 256, together=False) == 5 * 256


def test_an_evaluation_reads_its_answers_whoever_has_the_policys_log_probabilities_in_training(make_config):
    taken, read = (make_config("stage=evaluate", f"ppo.old_logprobs={whose}") for whose in ("sampler", "actor"))
    count = kind_of("evaluate").phase_flops
    assert count(taken, 1) == count(read, 1) and longest_step(taken)["score"] < longest_step(read)["score"]
