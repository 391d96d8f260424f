"""Forward and backward passes of a step of PPO: scoring a rollout, and the gradients of actor and critic."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.algo.kl import k3
from rlhf.algo.logprobs import token_logprobs
from rlhf.algo.losses import policy_loss, policy_ratio, value_loss
from rlhf.algo.masked import masked_sum
from rlhf.config.schema import Config
from rlhf.data.tokens import SequenceBatch, right_mask
from rlhf.engine.step import accumulate
from rlhf.engine.zero import backward
from rlhf.models.forward import micro_batches, response_logprobs, response_values
from rlhf.models.heads import model_inputs
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience
from rlhf.ppo.metrics import UpdateMetrics
from rlhf.ppo.ptx import count_predicted_tokens

# Scores [B, M] by M models of sequences [B, T], their mask, the number of response columns, and whether each ended [B].
Score = Callable[[Tensor, Tensor, int, Tensor], Tensor]


def score_rollout(
    engine: DeepSpeedRLHFEngine, args: Config, ids: Tensor, mask: Tensor, actions: Tensor, ended: Tensor, score: Score
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute log-probabilities of policy and reference and values, [B, R] and 0 on padding, and the scores of reward
    models [B, M], in micro-batches. `ids` and `mask` are [B, T], `actions` [B, R]."""
    width, packing, temperature = actions.size(1), args.ppo.packing, args.rollout.temperature
    engine.critic.eval()
    columns = [torch.zeros(actions.shape, device=ids.device) for _ in range(3)]
    scores: list[tuple[Tensor, Tensor]] = []
    order = torch.arange(len(ids))
    if packing != "none":
        order = mask.sum(1).argsort(descending=True, stable=True)
    models = engine.actor, engine.ref, engine.critic, *engine.reward_models.values()
    for part in micro_batches(order.tolist(), engine.batches.micro, packing, *models):
        rows = torch.tensor(part, device=ids.device)
        sequence = ids[rows], mask[rows], width  # [b, T]
        found = (
            response_logprobs(engine.actor, *sequence, temperature, packing)[0],
            response_logprobs(engine.ref, *sequence, temperature, packing)[0],
            response_values(engine.critic, *sequence, packing),
        )
        for column, values in zip(columns, found, strict=True):
            column[rows] = torch.where(actions[rows].bool(), values, 0.0)
        scores.append((rows, score(*sequence, ended[rows])))
    logprobs, reference, values = columns
    order_of_rows = torch.cat([rows for rows, _ in scores]).argsort()
    return logprobs, reference, values, torch.cat([found for _, found in scores])[order_of_rows]


def policy_gradient(
    engine: DeepSpeedRLHFEngine, args: Config, rows: Experience, count: float, metrics: UpdateMetrics
) -> None:
    """Accumulate the gradient of the clipped policy loss of some samples; `count` is the number of trained actions of the
    whole update."""
    actor, ppo, actions = engine.actor, args.ppo, rows.loss_mask
    actor.train()
    temperature, width = args.rollout.temperature, actions.size(1)
    logprobs, entropy = response_logprobs(actor, *rows.sequences(), width, temperature, ppo.packing, entropies=True)
    if metrics.is_first:
        gaps = ((logprobs.detach() - rows.logprobs) * actions).abs()
        metrics.first_gap_max = max(metrics.first_gap_max, float(gaps.max()))
        metrics.first_gaps += float(gaps.sum())
        metrics.first_tokens += float(actions.sum())
    ratio, cut = policy_ratio(logprobs, rows.logprobs, actions, ppo.log_ratio_clip)
    loss, clipped = policy_loss(ratio, rows.advantages, actions, ppo.clip_range)
    backward(actor, loss, count)
    accumulate(actor)
    metrics.ratio_max = max(metrics.ratio_max, float((ratio.detach() * actions).max()))
    metrics.sums["policy/loss"] += float(loss.detach())
    metrics.sums["policy/clip_fraction"] += float(clipped)
    metrics.sums["policy/log_ratio_cut"] += float(cut)
    metrics.sums["policy/entropy"] += float(masked_sum(entropy, actions))
    metrics.sums["policy/approx_kl"] += float(masked_sum(k3(rows.logprobs, logprobs.detach()), actions))


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
    metrics.sums["policy/ptx_loss"] += float(loss.detach())
    metrics.text_lengths += texts.lengths.tolist()
    metrics.text_tokens += float(mask.sum())


def value_gradient(
    engine: DeepSpeedRLHFEngine, args: Config, rows: Experience, count: float, metrics: UpdateMetrics
) -> None:
    """Accumulate the gradient of the clipped value loss of some samples; `count` is the number of trained actions of the
    whole update."""
    critic, ppo, actions = engine.critic, args.ppo, rows.loss_mask
    critic.train()
    values = response_values(critic, *rows.sequences(), actions.size(1), ppo.packing)
    loss, clipped = value_loss(values, rows.values, rows.returns, actions, ppo.value_clip_range)
    backward(critic, ppo.value_coef * loss, count)
    accumulate(critic)
    metrics.sums["value/loss"] += float(loss.detach())
    metrics.sums["value/clip_fraction"] += float(clipped)
