"""PPO, read from top to bottom: rollout, scores, rewards, advantages; epochs, mini-batches, actor and critic.

Forward and backward passes are in passes.py, the mathematics in rlhf/algo/.
"""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.estimators import Estimator, ScoredRollout
from rlhf.algo.estimators.gae import estimate_gae
from rlhf.algo.kl import AdaptiveKL, FixedKL, k1
from rlhf.algo.masked import whiten
from rlhf.algo.rewards import shape_scores, token_rewards
from rlhf.algo.schedule import learning_rate
from rlhf.config.derive import logged_learning_rate, policy_stage
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Ppo
from rlhf.data.loaders import balanced_share
from rlhf.data.tokens import PromptBatch, left_mask, right_mask
from rlhf.engine.compiled import run_uncompiled
from rlhf.engine.step import optimizer_step
from rlhf.engine.zero import set_rates
from rlhf.experiment.resolve import default_eos_penalty_mode
from rlhf.models.forward import micro_batches
from rlhf.planner.auto import choose_layout
from rlhf.ppo.agreement import check_first_ratio, check_sampler
from rlhf.ppo.ema import ExponentialMovingAverage
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience, from_all_ranks
from rlhf.ppo.metrics import UpdateMetrics
from rlhf.ppo.passes import policy_gradient, score_rollout, text_gradient, value_gradient
from rlhf.ppo.ptx import Texts
from rlhf.ppo.report import describe_rollout
from rlhf.rewards.total import Scores
from rlhf.rollout.base import Responses
from rlhf.runtime.distributed import gather, rank, total
from rlhf.runtime.seeds import random_stream, torch_seed, uniforms
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
        args = choose_layout(args, policy_stage(args)).config
        self.engine, self.args, self.ppo = engine, args, args.ppo
        self.kl = build_kl_controller(args.ppo)
        mode = args.ppo.eos_penalty_mode
        normalized = engine.reward is not None and engine.reward.module.scale != 1.0
        self.eos_penalty_mode = default_eos_penalty_mode(normalized) if mode is None else mode
        self.iteration = 0
        self.estimate: Estimator = estimate_gae
        self.total_updates = engine.num_total_iters * ppo_updates(args.ppo)
        self.updates = 0
        self.update_metrics = UpdateMetrics()
        texts = args.ppo.ptx_coef > 0
        self.texts = Texts(args, engine.template, engine.batches, engine.device) if texts else None
        self.average = build_average(engine, args.ppo, self.total_updates)
        self.metrics: dict[str, float] = {}
        self.clock = Clock()
        self.pending: Experience | None = None
        directory = inspection or Path(args.output_root) / "nonfinite"
        self.nonfinite = Nonfinite(args.ppo.max_nonfinite, directory, rank())

    @torch.no_grad()
    def generate_experience(self, prompt_batch: PromptBatch) -> Experience:
        """Sample a response to each prompt, score it, and estimate advantages.

        Raises RuntimeError if the responses come from another distribution than the policy's (ppo.sampler_tolerance).
        """
        self.clock = Clock()
        prompt_batch = prompt_batch.to(self.engine.device)
        with self.clock.phase("rollout"), self.engine.models_on_device(), run_uncompiled(self.ppo.compile):
            # 1. Rollout: each sample draws from a random stream of its own.
            rollout = self.args.rollout
            random = uniforms(self.args.seed, "rollout", self.iteration, prompt_batch.samples, rollout.max_new_tokens)
            sampler = self.engine.sampler_of(self.engine.actor, rollout)
            sampler.sync()
            responses = sampler.generate(prompt_batch, torch.from_numpy(random).to(self.engine.device))
        with self.clock.phase("score"), self.engine.models_on_device("critic", "ref", "reward"):
            experience, shaped, scored = self.make_experience(prompt_batch, responses)
        self.metrics = describe_rollout(experience, responses, shaped, self.kl.coef) | scored.metrics
        self.metrics["reward/raised"] = self.count_raised(experience.scores, responses.ended)
        gap, largest = self.metrics["policy/sampler_gap"], self.metrics["policy/sampler_gap_max"]
        if math.isfinite(gap) or first_nonfinite(experience) is None:  # else train_rlhf leaves the rollout out
            check_sampler(self.args, self.iteration, gap, largest)
        self.pending = experience
        return experience

    def make_experience(self, prompts: PromptBatch, responses: Responses) -> tuple[Experience, Tensor, Scores]:
        """Score the responses by all rewards and estimate advantages and returns; returns the shaped scores [B] too, and
        the scores with their metrics."""
        ppo = self.ppo
        prompt_mask = left_mask(prompts.lengths, prompts.ids.size(1))
        mask = right_mask(responses.lengths, responses.tokens.size(1))
        loss_mask = mask if ppo.train_on_eos else mask * (1 - last_action(mask) * responses.ended[:, None].long())
        # 2. Scoring: log-probabilities of policy and reference, values, scores. Functions score while the models read.
        samples = self.engine.read_samples(prompts, responses)
        self.engine.rewards.ask(samples)
        ids = torch.cat([prompts.ids, responses.tokens], dim=1)  # [B, T]
        whole = torch.cat([prompt_mask, mask], dim=1)
        read = score_rollout(self.engine, self.args, ids, whole, mask, responses.ended, self.score_responses)
        logprobs, reference, values, by_models = read
        scored = self.engine.rewards.combine(by_models, samples)
        scores, loss_mask = scored.total, loss_mask * scored.is_scored[:, None].long()
        # 3. Shaping of the scores.
        shaped = shape_scores(scores, responses.ended, ppo.reward_clip, ppo.eos_penalty, self.eos_penalty_mode)
        shaped = shaped - ppo.length_penalty * mask.sum(dim=1)
        # 4. Rewards: the KL penalty on every action, the score on the last action.
        rewards = token_rewards(shaped, k1(logprobs, reference), mask, self.kl.coef)
        if ppo.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        # 5. Advantages, whitened over all ranks, and returns.
        credit = self.estimate(ScoredRollout(rewards, values, mask), ppo)
        advantages = whiten(credit.advantages, loss_mask) if ppo.whiten_advantages else credit.advantages
        experience = Experience(
            prompts.ids, prompt_mask, responses.tokens, mask, loss_mask, logprobs, reference, values, rewards, advantages,
            credit.returns, scores,
        )  # fmt: skip
        return experience, shaped, scored

    def train_rlhf(self, experience: Experience) -> tuple[float, float]:
        """Update actor and critic on a rollout; returns their mean losses per token.

        Every pass goes over the samples of all ranks in a new order, `ppo.batch_size` at a time. Raises RuntimeError if
        the first mini-batch does not reproduce the rollout's log-probabilities.
        """
        self.pending = None
        if problem := first_nonfinite(experience):
            with self.clock.phase("train"):
                self.iteration += 1
            return self.skip_rollout(experience, problem)
        with self.clock.phase("train"):
            whole = from_all_ranks(experience)
            samples, ppo = whole.prompts.size(0), self.ppo
            self.update_metrics = UpdateMetrics()
            # 6. Updates: epochs over the samples of all ranks, each in a new order that is the same on all ranks.
            for epoch in range(ppo.update_epochs):
                order = random_stream(self.args.seed, "ppo order", self.iteration, epoch).permutation(samples).tolist()
                for start in range(0, samples, ppo.batch_size):
                    self.train_minibatch(whole, order[start : start + ppo.batch_size])
            # 7. The KL controller.
            self.kl.update(self.metrics["kl/sequence"], samples)
            self.iteration += 1
        self.metrics = {**self.metrics, **self.update_metrics.reduce()}
        losses = self.metrics["policy/loss"], self.metrics["value/loss"]
        if not all(map(math.isfinite, losses)):
            return self.skip_rollout(experience, "a loss")
        self.metrics["train/nonfinite"] = self.nonfinite.note(self.iteration, None, {})
        return losses

    def train_minibatch(self, experience: Experience, order: list[int]) -> None:
        """Take one optimizer step of actor and critic on these samples of all ranks; this rank reads its share of them.

        Raises RuntimeError on all ranks if the first mini-batch of a rollout has other log-probabilities than the rollout:
        the policy is the same before the first step, so that its ratios must be 1.
        """
        engine, args, ppo, metrics = self.engine, self.args, self.ppo, self.update_metrics
        device = experience.prompts.device
        count = float(experience.loss_mask[torch.tensor(order, device=device)].sum())
        metrics.rates = self.set_learning_rates()
        torch.manual_seed(torch_seed(args.seed, "ppo dropout", self.updates, rank()))
        if ppo.packing == "none":
            own = order[rank() :: engine.batches.ranks]
        else:
            lengths = (experience.prompt_mask.sum(1) + experience.mask.sum(1)).tolist()
            own = balanced_share(order, [lengths[row] for row in order], rank(), engine.batches.ranks)
        texts, text_count = self.texts.batches(self.updates) if self.texts else ([], 0.0)
        # Gradients of actor and critic, micro-batch by micro-batch.
        for number, part in enumerate(micro_batches(own, engine.batches.micro, ppo.packing, engine.actor, engine.critic)):
            rows = experience.rows(torch.tensor(part, device=device), trim=ppo.packing != "none")
            policy_gradient(engine, args, rows, count, metrics)
            if texts:
                text_gradient(engine, args, texts[number], text_count, metrics)
            value_gradient(engine, args, rows, count, metrics)
            metrics.sums["tokens"] += float(rows.loss_mask.sum())
        if metrics.is_first:
            check_first_ratio(args, self.iteration, *metrics.first_gap())
        # The optimizer step of both models, or of neither.
        metrics.add_norms(*optimizer_step(engine.actor, engine.critic))
        self.updates += 1
        if self.average is not None:
            self.average.update(self.updates)
        metrics.is_first = False

    def set_learning_rates(self) -> tuple[float, float]:
        """Set the learning rates of the next update; returns those of actor and critic."""
        ppo, args = self.ppo, self.args
        factor = learning_rate(self.updates, self.total_updates, 1.0, ppo.warmup_steps, ppo.schedule)
        for engine in (self.engine.actor, self.engine.critic):
            set_rates(engine, factor)
        peaks = (
            logged_learning_rate(args.lora, ppo.learning_rate),
            logged_learning_rate(args.critic_lora, ppo.critic_learning_rate),
        )
        return factor * peaks[0], factor * peaks[1]

    def count_raised(self, scores: Tensor, ended: Tensor) -> float:
        """Count the responses of all ranks whose score is higher because they did not end; `scores` and `ended` are [B]."""
        ppo = self.ppo
        clipped = shape_scores(scores, ended, ppo.reward_clip, None, self.eos_penalty_mode)
        penalised = shape_scores(scores, ended, ppo.reward_clip, ppo.eos_penalty, self.eos_penalty_mode)
        return total(float((penalised > clipped).sum()))[0]

    def score_responses(self, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
        """Return the scores [B, M] by the reward models of sequences [B, T], whose last `responses` columns are
        responses."""
        return self.engine.rewards.read_models(ids, mask, responses, ended)

    def numbers(self) -> dict[str, Any]:
        """Return this rank's numbers for a checkpoint: with `tensors`, all that training has changed beside the engines."""
        return {
            "iteration": self.iteration,
            "updates": self.updates,
            "kl": self.kl.state_dict(),
            "nonfinite": self.nonfinite.consecutive,
            "rewards": self.engine.rewards.state_dict(),
            "metrics": self.metrics,
            "seconds": self.clock.seconds,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return this rank's tensors for a checkpoint: the moving average, and the rollout that no update has seen yet."""
        pending = {} if self.pending is None else {f.name: getattr(self.pending, f.name) for f in fields(self.pending)}
        average = {} if self.average is None else self.average.state_dict()
        return {f"experience.{name}": tensor for name, tensor in pending.items()} | average

    def load_state_dict(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Resume where `numbers` and `tensors` were taken."""
        self.iteration, self.updates = numbers["iteration"], numbers["updates"]
        self.kl.load_state_dict(numbers["kl"])
        self.nonfinite.consecutive = numbers["nonfinite"]
        self.engine.rewards.load_state_dict(numbers.get("rewards", {}))
        self.metrics, self.clock = numbers["metrics"], Clock(numbers["seconds"])
        if self.average is not None:
            self.average.load_state_dict(tensors)
        kept = {name.removeprefix("experience."): t for name, t in tensors.items() if name.startswith("experience.")}
        self.pending = Experience(**{name: t.to(self.engine.device) for name, t in kept.items()}) if kept else None

    def skip_rollout(self, experience: Experience, problem: str) -> tuple[float, float]:
        """Count a rollout that is not finite and keep it for inspection; its finite metrics are logged."""
        batch = {field.name: getattr(experience, field.name) for field in fields(experience)}
        counted = self.nonfinite.note(self.iteration, problem, batch)
        self.metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        self.metrics["train/nonfinite"] = counted
        return math.nan, math.nan


def first_nonfinite(experience: Experience) -> str | None:
    """Find the first number that is not finite in a rollout, on any rank; None if all are finite."""
    columns = (
        ("a log-probability", experience.logprobs),
        ("a reference log-probability", experience.reference_logprobs),
        ("a value", experience.values),
        ("a score", experience.scores),
    )
    found = [name for name, column in columns if not bool(torch.isfinite(column).all())]
    return next((names[0] for names in gather(found) if names), None)


def last_action(mask: Tensor) -> Tensor:
    """Mark each row's last action: [B, R] with a 1 there and 0 elsewhere."""
    return mask * (mask.cumsum(1) == mask.sum(1, keepdim=True)).long()


def build_kl_controller(ppo: Ppo) -> FixedKL:
    """Build the KL controller that the configuration names."""
    if ppo.kl_controller == "adaptive":
        return AdaptiveKL(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
    return FixedKL(ppo.kl_coef)


def ppo_updates(ppo: Ppo) -> int:
    """Return the number of updates on a rollout."""
    return ppo.update_epochs * (ppo.rollout_batch_size // ppo.batch_size)


def build_average(engine: DeepSpeedRLHFEngine, ppo: Ppo, updates: int) -> ExponentialMovingAverage | None:
    """Start the moving average of the actor, if one is asked for. Raises ConfigError if it would begin after the last of so
    many updates."""
    if not ppo.ema:
        return None
    if ppo.ema_start > updates:
        problem = f"there are only {updates} updates to come"
        raise ConfigError("ppo.ema_start", ppo.ema_start, problem, "start earlier")
    average = ExponentialMovingAverage(engine.actor, ppo)
    average.update(0)
    return average
