"""The updates of actor and critic on one rollout."""

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf.algo.kl import k3
from rlhf.algo.logprobs import token_logprobs
from rlhf.algo.losses import policy_loss, policy_ratio, value_loss
from rlhf.algo.masked import masked_sum
from rlhf.algo.schedule import learning_rate
from rlhf.config.derive import logged_learning_rate
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.data.tokens import SequenceBatch, right_mask
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import backward, set_rates
from rlhf.models.forward import micro_batches, response_logprobs, response_values
from rlhf.models.heads import model_inputs
from rlhf.ppo.agreement import check_first_ratio
from rlhf.ppo.ema import ExponentialMovingAverage
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience
from rlhf.ppo.ptx import Texts, count_predicted_tokens
from rlhf.runtime.distributed import maximum, rank, total
from rlhf.runtime.seeds import random_stream, torch_seed


class Update:
    """Goes over a rollout `ppo.update_epochs` times, `ppo.batch_size` sequences per optimiser step of each model."""

    def __init__(self, engine: DeepSpeedRLHFEngine, args: Config) -> None:
        self.engine, self.args, self.ppo = engine, args, args.ppo
        per_rollout = self.ppo.update_epochs * (self.ppo.rollout_batch_size // self.ppo.batch_size)
        self.total_updates = engine.num_total_iters * per_rollout
        self.updates = 0
        texts = self.ppo.ptx_coef > 0
        self.texts = Texts(args, engine.tokenizer, engine.batches, engine.device) if texts else None
        if self.ppo.ema and self.ppo.ema_start > self.total_updates:
            problem = f"there are only {self.total_updates} updates to come"
            raise ConfigError("ppo.ema_start", self.ppo.ema_start, problem, "start earlier")
        self.average = ExponentialMovingAverage(engine.actor, self.ppo) if self.ppo.ema else None
        if self.average is not None:
            self.average.update(0)
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Start a rollout's updates."""
        self.iteration, self.first = iteration, True
        self.sums: dict[str, float] = defaultdict(float)
        self.ratio_max = self.first_gap_max = 0.0
        self.first_gaps = self.first_tokens = 0.0
        self.norms: dict[str, list[float]] = {"policy": [], "value": []}
        self.overflows = {"policy": 0, "value": 0}
        self.text_tokens = 0.0
        self.text_lengths: list[int] = []
        self.rates = (0.0, 0.0)

    def minibatches(self, samples: int) -> Iterator[list[int]]:
        """The samples of each update, the same on all ranks."""
        for epoch in range(self.ppo.update_epochs):
            order = random_stream(self.args.seed, "ppo order", self.iteration, epoch).permutation(samples).tolist()
            for start in range(0, samples, self.ppo.batch_size):
                yield order[start : start + self.ppo.batch_size]

    def minibatch(self, experience: Experience, order: list[int]) -> None:
        """One optimiser step of actor and critic on these samples of all ranks; this rank does its share of them."""
        device = experience.prompts.device
        count = float(experience.loss_mask[torch.tensor(order, device=device)].sum())
        self.set_rates()
        torch.manual_seed(torch_seed(self.args.seed, "ppo dropout", self.updates, rank()))
        if self.ppo.packing != "none":  # as much work for each rank
            lengths = (experience.prompt_mask.sum(1) + experience.mask.sum(1)).tolist()
            order = sorted(order, key=lambda row: -lengths[row])
        own = order[rank() :: self.engine.batches.ranks]
        texts, text_count = self.texts.batches(self.updates) if self.texts else ([], 0.0)
        models = self.engine.actor, self.engine.critic
        for number, part in enumerate(micro_batches(own, self.engine.batches.micro, self.ppo.packing, *models)):
            rows = experience.rows(torch.tensor(part, device=device), trim=self.ppo.packing != "none")
            self.micro_batch(rows, count, texts[number] if texts else None, text_count)
        if self.first:
            self.check_first()
        self.note(*optimizer_step(self.engine.actor, self.engine.critic))
        self.updates += 1
        if self.average is not None:
            self.average.update(self.updates)
        self.first = False

    def set_rates(self) -> None:
        """Both learning rates of the next update."""
        ppo, args = self.ppo, self.args
        factor = learning_rate(self.updates, self.total_updates, 1.0, ppo.warmup_steps, ppo.schedule)
        actor, critic = (
            logged_learning_rate(args.lora, ppo.learning_rate),
            logged_learning_rate(args.critic_lora, ppo.critic_learning_rate),
        )
        self.rates = factor * actor, factor * critic
        for engine in (self.engine.actor, self.engine.critic):
            set_rates(engine, factor)

    def micro_batch(self, rows: Experience, count: float, texts: SequenceBatch | None, text_count: float) -> None:
        """Accumulate the gradients of some samples, and of some texts; `count` is the number of trained actions of the
        whole update, `text_count` that of predicted tokens."""
        ids = torch.cat([rows.prompts, rows.responses], dim=1)
        mask = torch.cat([rows.prompt_mask, rows.mask], dim=1)
        self.actor_step(rows, ids, mask, count)
        if texts is not None:
            self.text_step(texts, text_count)
        self.critic_step(rows, ids, mask, count)
        self.sums["tokens"] += float(rows.loss_mask.sum())

    def actor_step(self, rows: Experience, ids: Tensor, mask: Tensor, count: float) -> None:
        """The clipped policy loss of [B, T] sequences and its gradient."""
        actor, ppo, actions = self.engine.actor, self.ppo, rows.loss_mask
        actor.train()
        temperature, width = self.args.rollout.temperature, actions.size(1)
        logprobs, entropy = response_logprobs(actor, ids, mask, width, temperature, ppo.packing, entropies=True)
        if self.first:
            gaps = ((logprobs.detach() - rows.logprobs) * actions).abs()
            self.first_gap_max = max(self.first_gap_max, float(gaps.max()))
            self.first_gaps, self.first_tokens = (
                self.first_gaps + float(gaps.sum()),
                self.first_tokens + float(actions.sum()),
            )
        ratio, cut = policy_ratio(logprobs, rows.logprobs, actions, ppo.log_ratio_clip)
        loss, clipped = policy_loss(ratio, rows.advantages, actions, ppo.clip_range)
        backward(actor, loss, count)
        accumulate(actor)
        self.ratio_max = max(self.ratio_max, float((ratio.detach() * actions).max()))
        self.sums["policy/loss"] += float(loss.detach())
        self.sums["policy/clip_fraction"] += float(clipped)
        self.sums["policy/log_ratio_cut"] += float(cut)
        self.sums["policy/entropy"] += float(masked_sum(entropy, actions))
        self.sums["policy/approx_kl"] += float(masked_sum(k3(rows.logprobs, logprobs.detach()), actions))

    def text_step(self, texts: SequenceBatch, count: float) -> None:
        """The pre-training loss of [B, T] texts and its gradient, which joins the policy's in one optimiser step."""
        actor, mask = self.engine.actor, count_predicted_tokens(texts)
        inputs = model_inputs(actor, texts.ids, right_mask(texts.lengths, texts.ids.size(1)))
        logits = actor(**inputs, use_cache=False).logits[:, :-1]
        logprobs, _ = token_logprobs(logits, inputs["input_ids"][:, 1:], 1.0, entropies=False)
        loss = -masked_sum(logprobs, mask)
        backward(actor, self.ppo.ptx_coef * loss, count)
        accumulate(actor)
        self.sums["policy/ptx_loss"] += float(loss.detach())
        self.text_lengths += texts.lengths.tolist()
        self.text_tokens += float(mask.sum())

    def critic_step(self, rows: Experience, ids: Tensor, mask: Tensor, count: float) -> None:
        """The clipped value loss of [B, T] sequences and its gradient."""
        critic, ppo, actions = self.engine.critic, self.ppo, rows.loss_mask
        critic.train()
        values = response_values(critic, ids, mask, actions.size(1), ppo.packing)
        loss, clipped = value_loss(values, rows.values, rows.returns, actions, ppo.value_clip_range)
        backward(critic, ppo.value_coef * loss, count)
        accumulate(critic)
        self.sums["value/loss"] += float(loss.detach())
        self.sums["value/clip_fraction"] += float(clipped)

    def check_first(self) -> None:
        """Before the first step the policy is the one whose log-probabilities the rollout holds: its ratios must be 1.

        Raises RuntimeError otherwise, on all ranks: the update would follow a wrong gradient.
        """
        self.first_gap_max = maximum(self.first_gap_max)
        gaps, tokens = total(self.first_gaps, self.first_tokens)
        check_first_ratio(self.args, self.iteration, gaps / max(1.0, tokens), self.first_gap_max)

    def note(self, policy: float, value: float) -> None:
        """Remember the gradient norms of an update; if one is not finite, both models left it out."""
        for name, norm in (("policy", policy), ("value", value)):
            if math.isfinite(norm):
                self.norms[name].append(norm)
            else:
                self.overflows[name] += 1

    def metrics(self) -> dict[str, float]:
        """What the updates of this rollout measured, over all ranks."""
        names = sorted(self.sums)
        *found, text_tokens = total(*(self.sums[name] for name in names), self.text_tokens)
        sums = dict(zip(names, found, strict=True))
        tokens = max(1.0, sums.pop("tokens"))
        counted = {"policy/log_ratio_cut": 1.0, "policy/ptx_loss": max(1.0, text_tokens)}
        metrics = {name: amount / counted.get(name, tokens) for name, amount in sums.items()}
        metrics |= {f"{name}/grad_norm": sum(norms) / len(norms) for name, norms in self.norms.items() if norms}
        metrics |= {f"{name}/overflows": float(count) for name, count in self.overflows.items()}
        metrics["policy/ratio_first"] = math.expm1(min(self.first_gap_max, 50.0))
        metrics["policy/ratio_max"] = maximum(self.ratio_max)
        return metrics | {"lr/actor": self.rates[0], "lr/critic": self.rates[1]}
