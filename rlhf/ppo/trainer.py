"""PPO: from prompts to experience, from experience to updates."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.advantages import advantages_and_returns, shape_scores, token_rewards
from rlhf.algo.kl import AdaptiveKL, FixedKL, k1
from rlhf.algo.masked import whiten
from rlhf.config.schema import Config, Ppo
from rlhf.data.tokens import PromptBatch, left_mask, right_mask
from rlhf.engine.compiled import run_uncompiled
from rlhf.experiment.resolve import default_eos_penalty_mode
from rlhf.models.forward import micro_batches, response_logprobs, response_values
from rlhf.ppo.agreement import check_sampler
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience, from_all_ranks
from rlhf.ppo.report import describe_rollout
from rlhf.ppo.update import Update
from rlhf.rollout.base import Responses
from rlhf.runtime.distributed import gather, rank, total
from rlhf.runtime.seeds import uniforms
from rlhf.tracking.nonfinite import Nonfinite
from rlhf.tracking.throughput import Clock


class DeepSpeedPPOTrainer:
    """Proximal policy optimisation (arXiv 1707.06347) of a language model against a reward model.

        for prompt_batch in prompt_train_dataloader:
            out = trainer.generate_experience(prompt_batch)
            actor_loss, critic_loss = trainer.train_rlhf(out)

    After each of the two calls `metrics` holds what it measured, the same on all ranks (names: rlhf/catalog/metric.py). A
    rollout with a score, a value or a log-probability that is not finite trains nothing, and an update with such a gradient
    is left out; the rollout is kept in `inspection`, and `ppo.max_nonfinite` of them in a row raise FloatingPointError.
    """

    def __init__(self, engine: DeepSpeedRLHFEngine, args: Config, inspection: Path | None = None) -> None:
        self.engine, self.args, self.ppo = engine, args, args.ppo
        self.kl = build_kl_controller(args.ppo)
        mode = args.ppo.eos_penalty_mode
        self.eos_penalty_mode = default_eos_penalty_mode(engine.reward.module.scale != 1.0) if mode is None else mode
        self.iteration = 0
        self.update = Update(engine, args)
        self.metrics: dict[str, float] = {}
        self.clock = Clock()
        self.pending: Experience | None = None
        directory = inspection or Path(args.output_root) / "nonfinite"
        self.nonfinite = Nonfinite(args.ppo.max_nonfinite, directory, rank())

    @torch.no_grad()
    def generate_experience(self, prompt_batch: PromptBatch) -> Experience:
        """Sample a response to each prompt, judge it, and estimate advantages.

        Raises RuntimeError if the responses come from another distribution than the policy's (ppo.sampler_tolerance).
        """
        self.clock = Clock()
        prompt_batch = prompt_batch.to(self.engine.device)
        with self.clock.phase("rollout"), self.engine.models_on_device(), run_uncompiled(self.ppo.compile):
            # 1. Sample, each sample from a random stream of its own.
            rollout = self.args.rollout
            random = uniforms(self.args.seed, "rollout", self.iteration, prompt_batch.samples, rollout.max_new_tokens)
            sampler = self.engine.sampler_of(self.engine.actor, rollout)
            sampler.sync()
            responses = sampler.generate(prompt_batch, torch.from_numpy(random).to(self.engine.device))
        with self.clock.phase("score"), self.engine.models_on_device("critic", "ref", "reward"):
            experience, shaped = self.make_experience(prompt_batch, responses)
        self.metrics = describe_rollout(experience, responses, shaped, self.kl.coef)
        self.metrics["reward/raised"] = self.count_raised(experience.scores, responses.ended)
        gap, largest = self.metrics["policy/sampler_gap"], self.metrics["policy/sampler_gap_max"]
        if math.isfinite(gap) or first_nonfinite(experience) is None:  # else train_rlhf leaves the rollout out
            check_sampler(self.args, self.iteration, gap, largest)
        self.pending = experience
        return experience

    def make_experience(self, prompts: PromptBatch, responses: Responses) -> tuple[Experience, Tensor]:
        """Score the responses by all models, and turn that into advantages and returns; also the shaped scores [B]."""
        ppo = self.ppo
        prompt_mask = left_mask(prompts.lengths, prompts.ids.size(1))
        mask = right_mask(responses.lengths, responses.tokens.size(1))
        loss_mask = mask if ppo.train_on_eos else mask * (1 - last_action(mask) * responses.ended[:, None].long())
        # 2. Log-probabilities of policy and reference, values, scores.
        ids = torch.cat([prompts.ids, responses.tokens], dim=1)
        whole = torch.cat([prompt_mask, mask], dim=1)
        logprobs, reference, values, scores = self.score_rollout(ids, whole, mask, responses.ended)
        # 3. Rewards: the KL penalty on every action, the score on the last one.
        shaped = shape_scores(scores, responses.ended, ppo.reward_clip, ppo.eos_penalty, self.eos_penalty_mode)
        shaped = shaped - ppo.length_penalty * mask.sum(dim=1)
        rewards = token_rewards(shaped, k1(logprobs, reference), mask, self.kl.coef)
        if ppo.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        # 4. Advantages, whitened over all ranks, and returns.
        advantages, returns = advantages_and_returns(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
        if ppo.whiten_advantages:
            advantages = whiten(advantages, loss_mask)
        experience = Experience(
            prompts.ids, prompt_mask, responses.tokens, mask, loss_mask, logprobs, reference, values, rewards, advantages,
            returns, scores,
        )  # fmt: skip
        return experience, shaped

    def count_raised(self, scores: Tensor, ended: Tensor) -> float:
        """How many responses of all ranks have a higher score for not having ended; `scores` and `ended` are [B]."""
        ppo = self.ppo
        clipped = shape_scores(scores, ended, ppo.reward_clip, None, self.eos_penalty_mode)
        penalised = shape_scores(scores, ended, ppo.reward_clip, ppo.eos_penalty, self.eos_penalty_mode)
        return total(float((penalised > clipped).sum()))[0]

    def score_rollout(
        self, ids: Tensor, mask: Tensor, actions: Tensor, ended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities of policy and reference and values [B, R], 0 on padding, and scores [B], in micro-batches."""
        engine, width, packing = self.engine, actions.size(1), self.ppo.packing
        engine.critic.eval()
        temperature = self.args.rollout.temperature
        columns = [torch.zeros(actions.shape, device=ids.device) for _ in range(3)]
        scores = torch.zeros(len(ids), device=ids.device)
        order = torch.arange(len(ids))
        if packing != "none":
            order = mask.sum(1).argsort(descending=True, stable=True)
        models = engine.actor, engine.ref, engine.critic, engine.reward
        for part in micro_batches(order.tolist(), engine.batches.micro, packing, *models):
            rows = torch.tensor(part, device=ids.device)
            sequence = ids[rows], mask[rows], width
            found = (
                response_logprobs(engine.actor, *sequence, temperature, packing)[0],
                response_logprobs(engine.ref, *sequence, temperature, packing)[0],
                response_values(engine.critic, *sequence, packing),
            )
            for column, values in zip(columns, found, strict=True):
                column[rows] = torch.where(actions[rows].bool(), values, 0.0)
            scores[rows] = self.score_responses(*sequence, ended[rows])
        logprobs, reference, values = columns
        return logprobs, reference, values, scores

    def score_responses(self, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
        """Return the reward model's scores [B] of sequences [B, T] whose last `responses` columns are responses."""
        return self.engine.score_responses(ids, mask, responses, ended)

    def train_rlhf(self, experience: Experience) -> tuple[float, float]:
        """Update actor and critic on a rollout; returns their mean losses per token.

        Every pass goes over the samples of all ranks in a new order, `ppo.batch_size` at a time. Raises RuntimeError if
        the first mini-batch does not reproduce the rollout's log-probabilities.
        """
        self.pending = None
        if problem := first_nonfinite(experience):
            with self.clock.phase("train"):
                self.iteration += 1
            return self.left_out(experience, problem)
        with self.clock.phase("train"):
            whole = from_all_ranks(experience)
            self.update.begin(self.iteration)
            for order in self.update.minibatches(whole.prompts.size(0)):
                self.update.minibatch(whole, order)
            self.kl.update(self.metrics["kl/sequence"], whole.prompts.size(0))
            self.iteration += 1
        self.metrics = {**self.metrics, **self.update.metrics()}
        losses = self.metrics["policy/loss"], self.metrics["value/loss"]
        if not all(map(math.isfinite, losses)):
            return self.left_out(experience, "a loss")
        self.metrics["train/nonfinite"] = self.nonfinite.note(self.iteration, None, {})
        return losses

    def numbers(self) -> dict[str, Any]:
        """With `tensors`, all that training has changed beside the engines: what a checkpoint keeps of this rank."""
        return {
            "iteration": self.iteration,
            "updates": self.update.updates,
            "kl": self.kl.state_dict(),
            "nonfinite": self.nonfinite.row,
            "metrics": self.metrics,
            "seconds": self.clock.seconds,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The moving average, and the rollout that no update has seen yet."""
        pending = {} if self.pending is None else {f.name: getattr(self.pending, f.name) for f in fields(self.pending)}
        average = {} if self.update.average is None else self.update.average.state_dict()
        return {f"experience.{name}": tensor for name, tensor in pending.items()} | average

    def load_state_dict(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on where `numbers` and `tensors` were taken."""
        self.iteration, self.update.updates = numbers["iteration"], numbers["updates"]
        self.kl.load_state_dict(numbers["kl"])
        self.nonfinite.row = numbers["nonfinite"]
        self.metrics, self.clock = numbers["metrics"], Clock(numbers["seconds"])
        if self.update.average is not None:
            self.update.average.load_state_dict(tensors)
        kept = {name.removeprefix("experience."): t for name, t in tensors.items() if name.startswith("experience.")}
        self.pending = Experience(**{name: t.to(self.engine.device) for name, t in kept.items()}) if kept else None

    def left_out(self, experience: Experience, problem: str) -> tuple[float, float]:
        """Count a rollout that is not finite, keep it for inspection, and log of it what can be logged."""
        batch = {field.name: getattr(experience, field.name) for field in fields(experience)}
        counted = self.nonfinite.note(self.iteration, problem, batch)
        self.metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        self.metrics["train/nonfinite"] = counted
        return math.nan, math.nan


def first_nonfinite(experience: Experience) -> str | None:
    """What is not finite in a rollout, on whatever rank; None if all is."""
    columns = (
        ("a log-probability", experience.logprobs),
        ("a reference log-probability", experience.reference_logprobs),
        ("a value", experience.values),
        ("a score", experience.scores),
    )
    found = [name for name, column in columns if not bool(torch.isfinite(column).all())]
    return next((names[0] for names in gather(found) if names), None)


def last_action(mask: Tensor) -> Tensor:
    """[B, R] with a 1 at each row's last action."""
    return mask * (mask.cumsum(1) == mask.sum(1, keepdim=True)).long()


def build_kl_controller(ppo: Ppo) -> FixedKL:
    """The KL controller that the configuration names."""
    if ppo.kl_controller == "adaptive":
        return AdaptiveKL(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
    return FixedKL(ppo.kl_coef)
