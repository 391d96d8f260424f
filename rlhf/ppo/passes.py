"""Forward and backward passes of a step of PPO: scoring a rollout, and the gradients of actor and critic."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algo.kl import KL_ESTIMATORS, k3
from rlhf.algo.logprobs import token_logprobs
from rlhf.algo.losses import (
    count_clipped,
    count_losses,
    likelihood_loss,
    loss_weights,
    policy_loss,
    policy_ratio,
    value_loss,
    weighted_sum,
)
from rlhf.algo.masked import masked_sum
from rlhf.config.schema import Config
from rlhf.data.loaders import balanced_share
from rlhf.data.tokens import SequenceBatch, right_mask
from rlhf.engine.step import accumulate
from rlhf.engine.zero import backward
from rlhf.models.forward import micro_batches, response_logprobs, response_values
from rlhf.models.heads import model_inputs
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience
from rlhf.ppo.metrics import UpdateMetrics
from rlhf.ppo.ptx import count_predicted_tokens
from rlhf.runtime.device import send_numbers
from rlhf.runtime.distributed import rank

# Scores [B, M] by M models of sequences [B, T], their mask, the number of response columns, and whether each ended [B].
Score = Callable[[Tensor, Tensor, int, Tensor], Tensor]


@dataclass(frozen=True)
class KeptPass:
    """What actor and critic said of a micro-batch in scoring, with the graphs that led there, through which the update goes
    back (`ppo.reuse_forward`): log-probabilities and entropies [b, R], and values [b, R]; None for a model that did not
    read."""

    policy: tuple[Tensor, Tensor] | None = None
    values: Tensor | None = None


def score_rollout(
    engine: DeepSpeedRLHFEngine,
    args: Config,
    ids: Tensor,
    mask: Tensor,
    actions: Tensor,
    ended: Tensor,
    score: Score,
    kept: list[KeptPass] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """Compute log-probabilities of policy and reference and values, [B, R] and 0 on padding, and the scores of reward
    models [B, M], in micro-batches; None for a model that the algorithm does without, and for the policy where its
    sampler's are taken. `ids` and `mask` are [B, T], `actions` [B, R]. Where `kept` is a list, the passes of actor and
    critic are added to it with their graphs."""
    width, packing, temperature = actions.size(1), args.ppo.packing, args.rollout.temperature
    if engine.critic is not None:
        engine.critic.eval()
    actor, keeps = engine.actor if args.ppo.old_logprobs == "actor" else None, kept is not None
    for model in (engine.actor, engine.critic) if keeps else ():
        if model is not None:
            model.train()  # without dropout it computes the same, and recomputes activations where it is to
    models = actor, engine.ref, engine.critic
    columns = [None if model is None else torch.zeros(actions.shape, device=ids.device) for model in models]
    scores: list[tuple[Tensor, Tensor]] = []
    for part in scoring_parts(engine, mask, packing):
        rows = send_numbers(part, ids.device)
        sequence = ids[rows], mask[rows], width  # [b, T]
        with torch.set_grad_enabled(keeps):
            policy = None if actor is None else response_logprobs(actor, *sequence, temperature, packing, keeps, keeps)
            values = None if engine.critic is None else response_values(engine.critic, *sequence, packing)
        reference = None if engine.ref is None else response_logprobs(engine.ref, *sequence, temperature, packing)[0]
        for column, found in zip(columns, (policy and policy[0], reference, values), strict=True):
            if column is not None and found is not None:
                column[rows] = torch.where(actions[rows].bool(), found.detach(), 0.0)
        if kept is not None:
            kept.append(KeptPass(policy, values))
        scores.append((rows, score(*sequence, ended[rows])))
    return columns[0], columns[1], columns[2], in_order(scores)


def score_alone(
    engine: DeepSpeedRLHFEngine, packing: str, ids: Tensor, mask: Tensor, width: int, ended: Tensor, score: Score
) -> Tensor:
    """Compute the scores of reward models [B, M] of sequences [B, T] in micro-batches; their last `width` columns are
    responses."""
    scores: list[tuple[Tensor, Tensor]] = []
    for part in scoring_parts(engine, mask, packing):
        rows = send_numbers(part, ids.device)
        scores.append((rows, score(ids[rows], mask[rows], width, ended[rows])))
    return in_order(scores)


def in_order(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Put together what was found for rows, each part with the indices of its rows."""
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return torch.cat([found for _, found in parts])[order]


def scoring_parts(engine: DeepSpeedRLHFEngine, mask: Tensor, packing: str) -> list[list[int]]:
    """Return the micro-batches in which sequences are scored, by row."""
    order = torch.arange(len(mask))
    if packing != "none":
        order = mask.sum(1).argsort(descending=True, stable=True)
    models = engine.actor, engine.ref, engine.critic, *engine.reward_models.values()
    held = (model for model in models if model is not None)
    return micro_batches(order.tolist(), engine.batches.micro, packing, *held)


def deal_out(
    engine: DeepSpeedRLHFEngine, args: Config, experience: Experience, order: list[int], lengths: list[tuple[int, int]]
) -> list[list[int]]:
    """Return the micro-batches of an update in which this rank reads its share of the samples of all ranks, by row. With
    `ppo.reuse_forward` they are those in which it scored its own."""
    ranks, packing = engine.batches.ranks, args.ppo.packing
    if args.ppo.reuse_forward:
        _, mask = experience.sequences()
        share = len(mask) // ranks
        first = rank() * share
        parts = scoring_parts(engine, mask[first : first + share], packing)
        return [[first + row for row in part] for part in parts]
    if packing == "none":
        own = order[rank() :: ranks]
    else:
        own = balanced_share(order, [sum(lengths[row]) for row in order], rank(), ranks)
    models = (model for model in (engine.actor, engine.critic) if model is not None)
    return micro_batches(own, engine.batches.micro, packing, *models)


@dataclass(frozen=True)
class LossTerms:
    """What joins the policy's loss: the coefficients of the KL penalty (0 where it is not in the loss) and of the entropy;
    and `count`, what the sum over the whole update is divided by."""

    count: float
    kl_coef: float = 0.0
    entropy_coef: float = 0.0


def policy_gradient(
    engine: DeepSpeedRLHFEngine, args: Config, rows: Experience, terms: LossTerms, metrics: UpdateMetrics,
    kept: KeptPass | None = None,
) -> None:  # fmt: skip
    """Accumulate the gradient of the policy's loss of some samples, which the actor reads now, or has read in scoring."""
    actor, ppo, actions = engine.actor, args.ppo, rows.loss_mask
    actor.train()
    if kept is not None and kept.policy is not None:
        logprobs, entropy = (column[:, : actions.size(1)] for column in kept.policy)
    else:
        logprobs, entropy = response_logprobs(
            actor, *rows.sequences(), actions.size(1), args.rollout.temperature, ppo.packing, entropies=True,
            entropy_learns=terms.entropy_coef > 0,
        )  # fmt: skip
    if metrics.is_first:
        metrics.add_gaps((logprobs.detach() - rows.logprobs).abs(), actions)
    ratio, cut = policy_ratio(logprobs, rows.logprobs, actions, ppo.log_ratio_clip, ppo.ratio_level)
    weights = loss_weights(actions, ppo.loss_aggregation, args.rollout.max_new_tokens)
    clips = ppo.clip_range, ppo.clip_range_high, ppo.dual_clip
    if ppo.policy_loss == "clipped":
        loss, clipped = policy_loss(ratio, rows.advantages, actions, *clips, weights)
        metrics.add({"policy/clip_fraction": clipped})
        metrics.add(count_clipped(ratio.detach(), rows.advantages, actions, *clips))
    else:
        loss = likelihood_loss(logprobs, rows.advantages, actions, weights)
    if terms.kl_coef > 0:
        assert rows.reference_logprobs is not None
        kl = weighted_sum(KL_ESTIMATORS[ppo.kl_estimator](logprobs, rows.reference_logprobs), actions, weights)
        metrics.add({"policy/kl_loss": kl})
        loss = loss + terms.kl_coef * kl
    if terms.entropy_coef > 0:
        loss = loss - terms.entropy_coef * weighted_sum(entropy, actions, weights)
    backward(actor, loss, terms.count)
    accumulate(actor)
    metrics.add_largest({"ratio": (ratio * actions).max()})
    metrics.add({
        "losses": count_losses(actions, ppo.loss_aggregation),
        "policy/loss": loss,
        "policy/log_ratio_cut": cut,
        "policy/entropy": masked_sum(entropy.detach(), actions),
        "policy/approx_kl": masked_sum(k3(rows.logprobs, logprobs.detach()), actions),
    })  # fmt: skip


def text_gradient(
    engine: DeepSpeedRLHFEngine, args: Config, texts: SequenceBatch, count: float, metrics: UpdateMetrics
) -> None:
    """Accumulate the gradient of the pre-training loss of [B, T] texts, which joins the policy's in one optimizer step;
    `count` is the number of predicted tokens of the whole update."""
    actor, mask = engine.actor, count_predicted_tokens(texts)
    inputs = model_inputs(actor, texts.ids, right_mask(texts.lengths, texts.ids.size(1)))
    logits = actor(**inputs, use_cache=False).logits[:, :-1]  # [B, T - 1, V]
    logprobs, _ = token_logprobs(logits, inputs["input_ids"][:, 1:], 1.0, entropies=False)
    loss = -masked_sum(logprobs, mask)
    backward(actor, args.ppo.ptx_coef * loss, count)
    accumulate(actor)
    metrics.add({"policy/ptx_loss": loss, "text_tokens": mask.sum()})
    metrics.text_lengths += texts.lengths.tolist()


def value_gradient(
    engine: DeepSpeedRLHFEngine, args: Config, rows: Experience, count: float, metrics: UpdateMetrics,
    kept: KeptPass | None = None,
) -> None:  # fmt: skip
    """Accumulate the gradient of the clipped value loss of some samples, which the critic reads now, or has read in
    scoring; `count` is the number of trained actions of the whole update."""
    critic, ppo, actions = engine.critic, args.ppo, rows.loss_mask
    assert rows.values is not None and rows.returns is not None
    critic.train()
    if kept is not None and kept.values is not None:
        values = kept.values[:, : actions.size(1)]
    else:
        values = response_values(critic, *rows.sequences(), actions.size(1), ppo.packing)
    loss, clipped = value_loss(values, rows.values, rows.returns, actions, ppo.value_clip_range)
    backward(critic, ppo.value_coef * loss, count)
    accumulate(critic)
    metrics.add({"value/loss": loss, "value/clip_fraction": clipped})
