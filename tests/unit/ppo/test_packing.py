"""Padding is not worked on, and what comes out is the same: `ppo.packing` packed and length against none."""

import os
import sys
from dataclasses import replace

import pytest
import torch
from support.quick import mark_slow
from support.ranks import run_script
from support.rounding import assert_same_gradients, assert_same_step
from support.small import SMALL_PPO
from support.tiny_models import assert_same_update, built, first_step, gradients, save_models, smooth_opt, weights

from rlhf.catalog import families
from rlhf.models.attention import takes_packed
from rlhf.models.forward import micro_batches, pack_inputs, response_logprobs, response_scores, response_values
from rlhf.models.load import new_policy, new_scorer, prepare_for_training
from rlhf.runtime.distributed import start

pytestmark = pytest.mark.rounding

FAMILIES = [family.replace("_", "-") for family in families.FAMILIES]
LENGTHS = ((7, 5), (4, 3), (1, 9), (12, 1), (4, 4))  # of prompts and responses
QUERY, RESPONSE = max(q for q, _ in LENGTHS), max(r for _, r in LENGTHS)
SMALL = (*SMALL_PPO, "ppo.batch_size=8", "ppo.micro_batch_size=2", "rollout.max_new_tokens=12", "ppo.max_grad_norm=1e9")


def sequences(seed=0):
    """Prompts padded left, responses padded right; padding holds arbitrary ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 500, (len(LENGTHS), QUERY + RESPONSE), generator=generator)
    columns = torch.arange(QUERY + RESPONSE)
    asked, told = (torch.tensor(column)[:, None] for column in zip(*LENGTHS, strict=True))
    return ids, ((columns >= QUERY - asked) & (columns < QUERY + told)).long()


def sharper(model):
    """Weights three times as large: random ones tell little apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


def outcome(policy, scorer, packing):
    """Everything that is computed of sequences, 0 on padding, and its gradients."""
    ids, mask = sequences()
    actions = mask[:, -RESPONSE:]
    logprobs, entropies = response_logprobs(policy, ids, mask, RESPONSE, 0.7, packing, entropies=True)
    values, scores = response_values(scorer, ids, mask, RESPONSE, packing), response_scores(scorer, ids, mask, packing)
    weights = torch.randn(actions.shape, generator=torch.Generator().manual_seed(1)) * actions / actions.sum()
    trained = [p for model in (policy, scorer) for p in model.parameters() if p.requires_grad]
    loss = (weights * (logprobs + values)).sum() + scores.mean()
    slopes = torch.autograd.grad(loss, trained, allow_unused=True)
    columns = [torch.where(actions.bool(), column, 0.0) for column in (logprobs, entropies, values)]
    return [*columns, scores], [slope for slope in slopes if slope is not None]


def compare(policy, scorer):
    right, expected = outcome(policy, scorer, "none")
    for packing in ("length", "packed"):
        columns, found = outcome(policy, scorer, packing)
        for column, same in zip(columns, right, strict=True):
            torch.testing.assert_close(column, same, atol=1e-5, rtol=1e-5)
        assert_same_gradients(found, expected)


def models_of(make_config, tokenizer, *overrides):
    config = make_config(*overrides)
    start(config)
    with smooth_opt():
        policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
        scorer = new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0)
    return config, sharper(policy).train(), sharper(scorer).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_the_same_with_and_without_padding(make_config, tokenizer, family):
    _, policy, scorer = models_of(make_config, tokenizer, f"model={family}-tiny")
    compare(policy, scorer)


@pytest.mark.parametrize("family", mark_slow(["opt", "gemma2", "gpt-neo", "bloom"], ["gemma2", "bloom"]))
@pytest.mark.parametrize(("lora", "checkpointing"), [("none", True), ("r8", False), ("r8", True)])
def test_adapters_and_recomputed_layers_too(make_config, tokenizer, family, lora, checkpointing):
    config, *models = models_of(make_config, tokenizer, f"model={family}-tiny", f"lora={lora}")
    policy, scorer = (prepare_for_training(model, config.lora, checkpointing, 0) for model in models)
    assert takes_packed(policy) == takes_packed(scorer) == (family != "bloom")
    with torch.no_grad():
        for name, parameter in [*policy.named_parameters(), *scorer.named_parameters()]:
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    compare(policy, scorer)


@torch.no_grad()
def test_nothing_is_computed_for_padding(make_config, tokenizer):
    """Nor logits for prompts."""
    _, policy, _ = models_of(make_config, tokenizer)
    _, other, _ = models_of(make_config, tokenizer, "model=bloom-tiny")
    ids, mask = sequences()
    assert pack_inputs(policy, ids, mask, "packed", mask).inputs["input_ids"].shape == (1, sum(map(sum, LENGTHS)))
    longest = max(map(sum, LENGTHS))
    for model, packing in ((policy, "length"), (other, "packed"), (other, "length")):
        assert pack_inputs(model, ids, mask, packing, mask).inputs["input_ids"].shape == (len(LENGTHS), longest)
    assert pack_inputs(policy, ids, mask, "none", mask).inputs["input_ids"].shape == mask.shape
    shapes = []
    policy.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[:2]))
    for packing in ("packed", "length", "none"):
        response_logprobs(policy, ids, mask, RESPONSE, 1.0, packing)
    assert shapes == [(1, sum(r for _, r in LENGTHS)), (len(LENGTHS), longest), (len(LENGTHS), RESPONSE + 1)]


@pytest.mark.parametrize("packing", ["packed", "length"])
@torch.no_grad()
def test_a_sequence_never_changes_another(make_config, tokenizer, packing):
    _, policy, scorer = models_of(make_config, tokenizer)
    (ids, mask), (others, _) = sequences(), sequences(seed=5)
    changed = ids.clone()
    changed[2] = others[2]
    for compute in (
        lambda ids: response_logprobs(policy, ids, mask, RESPONSE, 1.0, packing)[0],
        lambda ids: response_values(scorer, ids, mask, RESPONSE, packing),
        lambda ids: response_scores(scorer, ids, mask, packing)[:, None],
    ):
        before, after = compute(ids), compute(changed)
        same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
        assert same == [True, True, False, True, True]


def test_micro_batches_have_about_as_many_tokens_each(make_config, tokenizer):
    _, policy, _ = models_of(make_config, tokenizer)
    _, other, _ = models_of(make_config, tokenizer, "model=bloom-tiny")
    lengths = [100, 90, 50, 40, 9, 8, 3, 2]
    rows = list(range(8))
    dealt = micro_batches(rows, 2, "packed", policy)
    assert dealt == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert max(sum(lengths[row] for row in part) for part in dealt) < 190  # what neighbours would have
    for parts in (micro_batches(rows, 2, "length", policy), micro_batches(rows, 2, "packed", policy, other)):
        assert parts == [[0, 1], [2, 3], [4, 5], [6, 7]]
    for size in (1, 3, 5, 8, 9):
        parts = micro_batches(rows, size, "packed", policy)
        assert (
            len(parts) == -(-8 // size)
            and sorted(row for part in parts for row in part) == rows
            and max(map(len, parts)) <= size
        )


@pytest.mark.parametrize("packing", ["packed", "length"])
def test_a_step_ends_at_the_same_weights(make_config, smooth_models, tokenizer, packing):
    expected = first_step(make_config(*SMALL, "ppo.packing=none"), smooth_models, tokenizer)
    found = first_step(make_config(*SMALL, f"ppo.packing={packing}"), smooth_models, tokenizer)
    assert len(set(expected.experience.mask.sum(1).tolist())) > 5  # responses of unequal length
    for column in ("logprobs", "reference_logprobs", "values", "scores", "advantages"):
        right = getattr(expected.experience, column)
        torch.testing.assert_close(getattr(found.experience, column), right, atol=1e-5, rtol=1e-5)
    assert_same_update(found, expected)


def test_an_actor_that_reads_rows_beside_a_critic_that_does_not(make_config, tokenizer, tmp_path):
    config = make_config(*SMALL, "reward_model=bloom-tiny")
    with smooth_opt():
        models = save_models(config, tokenizer, tmp_path)
    expected = first_step(replace(config, ppo=replace(config.ppo, packing="none")), models, tokenizer)
    found = first_step(config, models, tokenizer)
    torch.testing.assert_close(found.experience.values, expected.experience.values, atol=1e-5, rtol=1e-5)
    assert_same_update(found, expected)


@torch.no_grad()
def test_scoring_computes_no_entropy(make_config, models, tokenizer, monkeypatch):
    from rlhf.algo import logprobs

    asked, plain = [], logprobs.chunk_logprobs
    monkeypatch.setattr(logprobs, "chunk_logprobs", lambda *given: asked.append(given[2]) or plain(*given))
    loader, _, trainer = built(make_config(*SMALL), models, tokenizer)
    experience = trainer.generate_experience(next(iter(loader)))
    assert asked and not any(asked)
    with torch.enable_grad():
        trainer.train_rlhf(experience)
    assert asked[-1] and trainer.metrics["policy/entropy"] > 0


@pytest.mark.slow
def test_two_ranks_that_share_weights_end_at_the_same_weights(smooth_models):
    assert all(out.splitlines()[-1] == "the same" for out in run_script(__file__, 2, *smooth_models))


def main(actor, reward):
    """Rank by rank: a step at ZeRO 3 ends at the same shards whatever the packing."""
    from rlhf.config.points import compose_config
    from rlhf.models.tokenizer import load_tokenizer

    ends = []
    for packing in ("none", "packed"):
        config = compose_config(
            *SMALL,
            "zero='3'",
            "zero.stage3_param_persistence_threshold=0",
            "hardware.gpus_per_node=2",
            f"ppo.packing={packing}",
        )
        start(config)
        loader, engine, trainer = built(config, (actor, reward), load_tokenizer(actor, "ppo.actor", None, False))
        trained = engine.actor, engine.critic
        before = weights(*trained)
        trainer.train_rlhf(trainer.generate_experience(next(iter(loader))))
        ends.append((gradients(*trained), weights(*trained)))
        engine.release()
    (expected, right), (found, end) = ends
    assert_same_gradients(found, expected)
    assert_same_step(end, right, before)
    print("the same")


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
