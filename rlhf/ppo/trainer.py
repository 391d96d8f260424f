"""PPO and its kin, read from top to bottom: rollout, scores, rewards, advantages; epochs, mini-batches, actor and critic.

Forward and backward passes are in passes.py, the mathematics in rlhf/algo/.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.entropy import EntropyBonus
from rlhf.algo.estimators import Estimator, ScoredRollout
from rlhf.algo.kl import KL_ESTIMATORS, build_kl_controller, k1
from rlhf.algo.losses import count_losses
from rlhf.algo.masked import last_action, whiten, zero_padding
from rlhf.algo.rewards import overlong_penalty, shape_scores, token_rewards
from rlhf.algo.schedule import learning_rate
from rlhf.catalog.estimator import load_estimator, needs_of
from rlhf.config.derive import logged_learning_rate, policy_stage
from rlhf.config.schema import Config
from rlhf.data.tokens import PromptBatch, to_prompt_batch
from rlhf.engine.save import save_model
from rlhf.engine.step import optimizer_step
from rlhf.engine.zero import set_rates
from rlhf.experiment.resolve import default_eos_penalty_mode
from rlhf.planner.auto import choose_layout
from rlhf.ppo.agreement import compare_first_minibatch, compare_sampler
from rlhf.ppo.draws import Draws
from rlhf.ppo.ema import build_average
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import (
    Experience,
    ScoredSamples,
    columns_of,
    first_nonfinite,
    from_all_ranks,
    responses_of,
    sequences_of,
    tensors_of,
)  # fmt: skip
from rlhf.ppo.metrics import UpdateMetrics, ppo_updates
from rlhf.ppo.passes import LossTerms, deal_out, policy_gradient, score_alone, score_rollout, text_gradient, value_gradient
from rlhf.ppo.ptx import Texts
from rlhf.ppo.reference import reference_state, refresh_reference, restore_reference
from rlhf.ppo.report import describe_groups, describe_rollout
from rlhf.rollout.base import Responses
from rlhf.runtime.device import send_numbers
from rlhf.runtime.distributed import rank, total
from rlhf.runtime.seeds import random_stream, torch_seed, uniforms
from rlhf.tracking.nonfinite import Nonfinite
from rlhf.tracking.throughput import Clock


class DeepSpeedPPOTrainer:
    """Policy optimisation of a language model against a reward model: PPO (arXiv 1707.06347), or what `args.algorithm` and
    the keys behind it (conf/algorithm/) make of it.

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
        self.entropy = EntropyBonus(args.ppo.entropy_coef, args.ppo.entropy_target, args.ppo.entropy_step)
        mode = args.ppo.eos_penalty_mode
        normalized = engine.reward is not None and engine.reward.module.scale != 1.0
        self.eos_penalty_mode = default_eos_penalty_mode(normalized) if mode is None else mode
        self.iteration = 0
        self.estimate: Estimator = load_estimator(args.ppo.estimator)
        self.copies, self.needs = args.rollout.samples_per_prompt, needs_of(args.ppo.estimator)
        self.draws = Draws(args)
        self.total_updates = engine.num_total_iters * ppo_updates(args.ppo)
        self.updates = 0
        self.update_metrics = UpdateMetrics()
        texts = args.ppo.ptx_coef > 0
        self.texts = Texts(args, engine.template, engine.batches, engine.device) if texts else None
        self.average = build_average(engine.actor, args.ppo, self.total_updates)
        self.metrics: dict[str, float] = {}
        self.clock = Clock()
        self.pending: Experience | None = None
        self.kept: list[Any] = []  # the passes of scoring that the pending rollout's update goes back through
        directory = inspection or Path(args.output_root) / "nonfinite"
        self.nonfinite = Nonfinite(args.ppo.max_nonfinite, directory, rank())

    @torch.no_grad()
    def generate_experience(
        self, prompt_batch: PromptBatch | Mapping[str, Tensor], between: Callable[[], None] = lambda: None
    ) -> Experience:
        """Sample a response to each prompt, score it, and estimate advantages.

        With `ppo.dynamic_sampling` more prompts are drawn until the rollout is full; `between` is called before each
        further draw, when the trainer can be saved. Raises RuntimeError if the responses come from another distribution
        than the policy's (ppo.sampler_tolerance).
        """
        prompt_batch = to_prompt_batch(prompt_batch, rank(), self.copies)
        if self.draws.count == 0:
            self.clock = Clock()
        prompts = prompt_batch.more(self.draws.count) if self.draws.count else prompt_batch
        (samples, scored), draws = self.draw_samples(prompts), 1.0
        if self.ppo.dynamic_sampling:
            while not self.draws.add(samples):
                between()
                samples, scored = self.draw_samples(prompt_batch.more(self.draws.count))
            samples, draws = self.draws.take()
        with self.clock.phase("score"):
            experience, shaped = self.assign_credit(samples)
        responses = responses_of(samples)
        self.metrics = describe_rollout(experience, responses, shaped, self.kl.coef) | scored
        counted = {"group/draws": draws} if self.ppo.dynamic_sampling else {}
        self.metrics |= describe_groups(samples, self.copies) | counted
        self.metrics["reward/raised"] = self.count_raised(experience.scores, responses.ended)
        if self.ppo.old_logprobs == "actor":
            self.metrics |= compare_sampler(self.args, self.iteration, experience, responses)
        self.pending = experience
        return experience

    def draw_samples(self, prompts: PromptBatch) -> tuple[ScoredSamples, dict[str, float]]:
        """Answer prompts and score the answers; returns the metrics of the rewards too."""
        prompts, rollout = prompts.to(self.engine.device), self.args.rollout
        greedy = None
        with self.clock.phase("rollout"), self.engine.models_on_device():
            # 1. Rollout: each sample draws from a random stream of its own.
            random = uniforms(self.args.seed, "rollout", self.iteration, prompts.samples, rollout.max_new_tokens)
            sampler = self.engine.sampler_of(self.engine.actor, rollout)
            sampler.sync()
            responses = sampler.generate(prompts, torch.from_numpy(random).to(self.engine.device))
            if "greedy" in self.needs:
                greedy = self.answer_greedily(prompts)
        with self.clock.phase("score"), self.engine.models_on_device("critic", "ref", "reward"):
            return self.score_samples(prompts, responses, greedy)

    def answer_greedily(self, prompts: PromptBatch) -> tuple[PromptBatch, Responses]:
        """Return each prompt once, with its likeliest response."""
        likeliest = replace(self.args.rollout, do_sample=False, samples_per_prompt=1, top_k=0, top_p=1.0)
        once = prompts.rows(torch.arange(0, len(prompts.samples), self.copies, device=prompts.ids.device))
        sampler = self.engine.sampler_of(self.engine.actor, likeliest)
        sampler.sync()
        return once, sampler.generate(
            once, torch.zeros(len(once.samples), likeliest.max_new_tokens, device=once.ids.device)
        )

    def make_experience(self, prompts: PromptBatch, responses: Responses) -> tuple[Experience, Tensor]:
        """Score the responses by all rewards and estimate advantages and returns; returns the shaped scores [B] too."""
        return self.assign_credit(self.score_samples(prompts, responses)[0])

    def score_samples(
        self, prompts: PromptBatch, responses: Responses, greedy: tuple[PromptBatch, Responses] | None = None
    ) -> tuple[ScoredSamples, dict[str, float]]:
        """Let all models read the responses, and all rewards score them and the `greedy` ones; returns the metrics of the
        rewards too."""
        # 2. Scoring: log-probabilities of policy and reference, values, scores. Functions score while the models read.
        read_samples = self.engine.judges.read_samples
        texts = read_samples(prompts, responses) + (read_samples(*greedy) if greedy else [])
        self.engine.rewards.ask(texts)
        ids, whole, prompt_mask, mask = sequences_of(prompts, responses)
        self.kept = []
        kept = self.kept if self.ppo.reuse_forward else None
        read = score_rollout(self.engine, self.args, ids, whole, mask, responses.ended, self.score_responses, kept)
        logprobs, reference, values, by_models = read
        logprobs = zero_padding(responses.logprobs, mask) if logprobs is None else logprobs
        if greedy is not None:
            more, seen, _, actions = sequences_of(*greedy)
            how = actions.size(1), greedy[1].ended, self.score_responses
            by_models = torch.cat([by_models, score_alone(self.engine, self.ppo.packing, more, seen, *how)])
        count, baseline = len(ids), None
        scored = self.engine.rewards.combine(by_models, texts, count)
        is_scored = scored.is_scored
        if greedy is not None:
            best = self.shape(scored.total[count:], actions, greedy[1].ended)
            baseline, counted = (column.repeat_interleave(self.copies) for column in (best, is_scored[count:]))
            is_scored = is_scored[:count] & counted
        samples = ScoredSamples(
            prompts.ids, prompt_mask, responses.tokens, mask, responses.ended.long(), logprobs, responses.logprobs,
            scored.total[:count], is_scored.long(), reference, values, baseline,
            self.engine.judges.place_spans(scored.spans[:count], responses), scored.by_group,
        )  # fmt: skip
        return samples, scored.metrics

    def shape(self, scores: Tensor, mask: Tensor, ended: Tensor) -> Tensor:
        """Return scores [B] as the algorithm sees them: clipped, and less the penalties of responses of mask [B, R]."""
        ppo, lengths, longest = self.ppo, mask.sum(dim=1), self.args.rollout.max_new_tokens
        # 3. Shaping of the scores.
        shaped = shape_scores(scores, ended, ppo.reward_clip, ppo.eos_penalty, self.eos_penalty_mode)
        shaped = shaped - ppo.length_penalty * lengths
        if ppo.overlong_buffer > 0:
            shaped = shaped + ppo.overlong_penalty * overlong_penalty(lengths, longest, ppo.overlong_buffer * longest)
        return shaped

    def assign_credit(self, samples: ScoredSamples) -> tuple[Experience, Tensor]:
        """Estimate advantages and returns; returns the shaped scores [B] too."""
        ppo, mask, ended = self.ppo, samples.mask, samples.ended.bool()
        loss_mask = mask if ppo.train_on_eos else mask * (1 - last_action(mask) * ended[:, None].long())
        loss_mask = loss_mask * samples.is_scored[:, None]
        if ppo.overlong_filter:
            loss_mask = loss_mask * samples.ended[:, None]
        shaped = self.shape(samples.scores, mask, ended)
        # 4. Rewards: the KL penalty on every action, unless in the loss or nowhere; spans; the rest of the score, last.
        kl, reference = torch.zeros_like(samples.logprobs), samples.reference_logprobs
        if ppo.kl_placement == "reward" and reference is not None:
            kl = KL_ESTIMATORS[ppo.kl_estimator](samples.logprobs, reference)
        rewards = token_rewards(shaped, kl, mask, self.kl.coef, samples.token_scores)
        if ppo.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        # 5. Advantages, whitened over all ranks, and returns.
        log_ratio = None if reference is None else zero_padding(k1(samples.logprobs, reference), mask)
        scored = ScoredRollout(
            rewards, mask, shaped, self.copies, samples.values, samples.greedy_scores, log_ratio, samples.is_scored,
            samples.group_scores,
        )  # fmt: skip
        credit = self.estimate(scored, ppo)
        if credit.trained is not None:
            loss_mask = loss_mask * credit.trained[:, None].long()
        advantages = whiten(credit.advantages, loss_mask) if ppo.whiten_advantages else credit.advantages
        experience = Experience(
            samples.prompts, samples.prompt_mask, samples.responses, mask, loss_mask, samples.logprobs, rewards, advantages,
            samples.scores, reference, samples.values, credit.returns,
        )  # fmt: skip
        return experience, shaped

    def train_rlhf(self, experience: Experience) -> tuple[float, float]:
        """Update actor and critic on a rollout; returns their mean losses, 0 for a model that does not learn.

        Every pass goes over the samples of all ranks in a new order, `ppo.batch_size` at a time. Raises RuntimeError if
        the first mini-batch does not reproduce the rollout's log-probabilities.
        """
        self.kept = self.kept if experience is self.pending else []
        self.pending = None
        if problem := first_nonfinite(experience):
            with self.clock.phase("train"):
                self.iteration, self.update_metrics = self.iteration + 1, UpdateMetrics()
            return self.skip_rollout(experience, problem)
        with self.clock.phase("train"):
            whole = from_all_ranks(experience)
            samples, ppo = whole.prompts.size(0), self.ppo
            self.update_metrics = UpdateMetrics()
            end = self.updates + ppo_updates(ppo)
            # 6. Updates: epochs over the samples of all ranks, each in a new order that is the same on all ranks.
            for order in self.minibatches(samples):
                self.train_minibatch(whole, order)
                if ppo.early_stop_kl is not None and self.update_metrics.last_kl() > ppo.early_stop_kl:
                    break
            self.updates = end  # updates that were left out count for the learning rates
            # 7. The KL controller, and the reference.
            self.kl.update(self.metrics.get("kl/sequence", 0.0), samples)
            self.iteration += 1
            if ppo.reference_refresh is not None and self.iteration % ppo.reference_refresh == 0:
                refresh_reference(self.engine)
        self.metrics = {**self.metrics, **self.update_metrics.reduce()}
        losses = self.metrics.get("policy/loss", 0.0), self.metrics.get("value/loss", 0.0)
        if not all(map(math.isfinite, losses)):
            return self.skip_rollout(experience, "a loss")
        if "policy/entropy" in self.metrics:
            self.metrics["policy/entropy_coef"] = self.entropy.weight
            self.entropy.update(self.metrics["policy/entropy"])
        self.metrics["train/nonfinite"] = self.nonfinite.note(self.iteration, None, {})
        return losses

    def minibatches(self, samples: int) -> Iterator[list[int]]:
        """Yield the samples of each update on a rollout, by row."""
        for epoch in range(self.ppo.update_epochs):
            order = random_stream(self.args.seed, "ppo order", self.iteration, epoch).permutation(samples).tolist()
            for start in range(0, samples, self.ppo.batch_size):
                yield order[start : start + self.ppo.batch_size]

    def train_minibatch(self, experience: Experience, order: list[int]) -> None:
        """Take one optimizer step of actor and critic on these samples of all ranks; this rank reads its share of them.

        Raises RuntimeError on all ranks if the first mini-batch of a rollout has other log-probabilities than the rollout:
        the policy is the same before the first step, so that its ratios must be 1.
        """
        engine, args, ppo, metrics = self.engine, self.args, self.ppo, self.update_metrics
        device, learners = experience.prompts.device, self.learners()
        trained = experience.loss_mask[send_numbers(order, device)]
        count = max(1.0, float(trained.sum()))
        terms = LossTerms(
            max(1.0, float(count_losses(trained, ppo.loss_aggregation))),
            self.kl.coef if ppo.kl_placement == "loss" else 0.0,
            self.entropy.weight,
        )
        metrics.rates = self.set_learning_rates()
        torch.manual_seed(torch_seed(args.seed, "ppo dropout", self.updates, rank()))
        lengths = experience.lengths()
        texts, text_count = self.texts.batches(self.updates) if self.texts and "policy" in learners else ([], 0.0)
        # Gradients of actor and critic, micro-batch by micro-batch.
        for number, part in enumerate(deal_out(engine, args, experience, order, lengths)):
            kept = self.kept.pop(0) if self.kept else None
            own_lengths = None if ppo.packing == "none" else [lengths[row] for row in part]
            rows = experience.rows(send_numbers(part, device), own_lengths)
            if "policy" in learners:
                policy_gradient(engine, args, rows, terms, metrics, kept)
            if texts:
                text_gradient(engine, args, texts[number], text_count, metrics)
            if "value" in learners:
                value_gradient(engine, args, rows, count, metrics, kept)
            metrics.add({"tokens": rows.loss_mask.sum()})
        if metrics.is_first and "policy" in learners:
            self.metrics |= compare_first_minibatch(args, self.iteration, *metrics.first_gap())
        # The optimizer step of both models, or of neither.
        metrics.add_norms(dict(zip(learners, optimizer_step(*learners.values()), strict=True)))
        self.updates += 1
        if self.average is not None:
            self.average.update(self.updates)
        metrics.is_first = False

    def learners(self) -> dict[str, Any]:
        """Return the engines that learn from the present rollout: the critic alone in its warm-up."""
        actor = {"policy": self.engine.actor} if self.iteration >= self.ppo.critic_warmup else {}
        return actor | ({} if self.engine.critic is None else {"value": self.engine.critic})

    def set_learning_rates(self) -> dict[str, float]:
        """Set the learning rates of the next update; returns those of actor and critic by the names of their metrics."""
        ppo, args = self.ppo, self.args
        factor = learning_rate(self.updates, self.total_updates, 1.0, ppo.warmup_steps, ppo.schedule)
        peaks = {"lr/actor": (self.engine.actor, logged_learning_rate(args.lora, ppo.learning_rate))}
        if self.engine.critic is not None:
            critic_peak = logged_learning_rate(args.critic_lora, ppo.critic_learning_rate)
            peaks["lr/critic"] = self.engine.critic, critic_peak
        for engine, _ in peaks.values():
            set_rates(engine, factor)
        return {name: factor * peak for name, (_, peak) in peaks.items()}

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

    def save(self, directory: str | Path) -> None:
        """Save the actor as a model that `transformers` loads, with its tokenizer. All ranks must call this."""
        card = f"A language model trained by {self.args.algorithm}."
        save_model(self.engine.actor, self.engine.tokenizer, self.args.lora, Path(directory), card)

    def numbers(self) -> dict[str, Any]:
        """Return this rank's numbers for a checkpoint: with `tensors`, all that training has changed beside the engines."""
        return {
            "iteration": self.iteration,
            "updates": self.updates,
            "kl": self.kl.state_dict(),
            "entropy": self.entropy.state_dict(),
            "draws": self.draws.count,
            "drawn": list(self.draws.lengths),
            "nonfinite": self.nonfinite.consecutive,
            "rewards": self.engine.rewards.state_dict(),
            "metrics": self.metrics,
            "seconds": self.clock.seconds,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return this rank's tensors for a checkpoint: the moving average, a reference that is a later policy, the rollout
        that no update has seen yet, and what is there of one that is not full."""
        average = {} if self.average is None else self.average.state_dict()
        pending = {} if self.pending is None else columns_of(self.pending)
        tensors = {f"experience.{name}": tensor for name, tensor in pending.items()}
        tensors |= {f"draws.{name}": tensor for name, tensor in self.draws.tensors().items()}
        return tensors | reference_state(self.engine) | average

    def load_state_dict(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Resume where `numbers` and `tensors` were taken."""
        self.iteration, self.updates = numbers["iteration"], numbers["updates"]
        self.kl.load_state_dict(numbers["kl"])
        self.nonfinite.consecutive = numbers["nonfinite"]
        self.engine.rewards.load_state_dict(numbers.get("rewards", {}))
        self.metrics, self.clock = numbers["metrics"], Clock(numbers["seconds"])
        if self.average is not None:
            self.average.load_state_dict(tensors)
        if "entropy" in numbers:  # not in checkpoints of earlier releases
            self.entropy.load_state_dict(numbers["entropy"])
        refresh = self.ppo.reference_refresh
        if refresh is not None and self.iteration >= refresh:
            restore_reference(self.engine, tensors)
        device = self.engine.device
        self.draws.load_state(numbers.get("draws", 0), tensors_of("draws.", tensors, device), numbers.get("drawn", []))
        kept = tensors_of("experience.", tensors, device)
        self.pending = Experience(**kept) if kept else None

    def skip_rollout(self, experience: Experience, problem: str) -> tuple[float, float]:
        """Count a rollout that is not finite and keep it for inspection; its finite metrics are logged."""
        counted, self.kept = self.nonfinite.note(self.iteration, problem, columns_of(experience)), []
        self.metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        self.metrics["train/nonfinite"] = counted
        return math.nan, math.nan
