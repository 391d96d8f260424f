"""The updates of actor and critic on one rollout."""

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf.algo.kl import k3
from rlhf.algo.losses import policy_loss, policy_ratio, value_loss
from rlhf.algo.masked import masked_sum
from rlhf.algo.schedule import learning_rate
from rlhf.config.schema import Config
from rlhf.data.loaders import share
from rlhf.data.streams import stream
from rlhf.engine.distributed import maximum, rank, total
from rlhf.engine.zero import backward, set_learning_rate, step
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience
from rlhf.ppo.forward import response_logprobs, response_values

# How far the first mini-batch's log-ratios may be from 0: (single token, mean over tokens), in nats.
RATIO_TOLERANCE = {"fp32": (1e-3, 1e-3), "bf16": (0.5, 0.02), "fp16": (0.5, 0.02)}


class Update:
    """Goes over a rollout `ppo.update_epochs` times, `ppo.batch_size` sequences per optimiser step of each model."""

    def __init__(self, engine: DeepSpeedRLHFEngine, args: Config) -> None:
        self.engine, self.args, self.ppo = engine, args, args.ppo
        per_rollout = self.ppo.update_epochs * (self.ppo.rollout_batch_size // self.ppo.batch_size)
        self.total_updates = engine.num_total_iters * per_rollout
        self.updates = 0
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Start a rollout's updates."""
        self.iteration, self.first = iteration, True
        self.sums: dict[str, float] = defaultdict(float)
        self.ratio_first = self.ratio_max = 0.0
        self.norms: dict[str, list[float]] = {"policy": [], "value": []}
        self.rates = (0.0, 0.0)

    def minibatches(self, samples: int) -> Iterator[list[int]]:
        """The samples of each update, the same on all ranks."""
        for epoch in range(self.ppo.update_epochs):
            order = stream(self.args.seed, "ppo order", self.iteration, epoch).permutation(samples).tolist()
            for start in range(0, samples, self.ppo.batch_size):
                yield order[start : start + self.ppo.batch_size]

    def minibatch(self, experience: Experience, order: list[int]) -> None:
        """One optimiser step of actor and critic on these samples of all ranks; this rank does its share of them."""
        device = experience.prompts.device
        count = float(experience.loss_mask[torch.tensor(order, device=device)].sum())
        self.set_rates()
        own = share(order, rank(), self.engine.batches.ranks)
        for start in range(0, len(own), self.engine.batches.micro):
            rows = experience.rows(torch.tensor(own[start : start + self.engine.batches.micro], device=device))
            self.micro_batch(rows, count)
        self.updates += 1
        self.first = False

    def set_rates(self) -> None:
        """Both learning rates of the next update."""
        ppo = self.ppo
        peaks = (ppo.learning_rate, ppo.critic_learning_rate)
        self.rates = tuple(learning_rate(self.updates, self.total_updates, peak, ppo.warmup_steps, ppo.schedule) for peak in peaks)
        for engine, rate in zip((self.engine.actor, self.engine.critic), self.rates, strict=True):
            set_learning_rate(engine, rate)

    def micro_batch(self, rows: Experience, count: float) -> None:
        """Accumulate the gradients of some samples; `count` is the number of trained actions of the whole update."""
        engine, ppo, mask = self.engine, self.ppo, rows.loss_mask
        ids, sequence_mask = torch.cat([rows.prompts, rows.responses], 1), torch.cat([rows.prompt_mask, rows.mask], 1)
        width = rows.responses.size(1)
        engine.actor.train()
        engine.critic.train()

        logprobs, entropy = response_logprobs(engine.actor, ids, sequence_mask, width, self.args.rollout.temperature)
        ratio, cut = policy_ratio(logprobs, rows.logprobs, mask, ppo.log_ratio_clip)
        if self.first:
            self.check_first(logprobs.detach(), rows.logprobs, mask)
        loss, clipped = policy_loss(ratio, rows.advantages, mask, ppo.clip_range)
        backward(engine.actor, loss, count, engine.batches)
        self.note("policy", step(engine.actor))

        values = response_values(engine.critic, ids, sequence_mask, width, engine.reward_bias)
        critic_loss, value_clipped = value_loss(values, rows.values, rows.returns, mask, ppo.value_clip_range)
        backward(engine.critic, ppo.value_coef * critic_loss, count, engine.batches)
        self.note("value", step(engine.critic))

        self.ratio_max = max(self.ratio_max, float((ratio.detach() * mask).max()))
        for name, amount in (
            ("policy/loss", loss), ("policy/clip_fraction", clipped), ("policy/log_ratio_cut", cut),
            ("policy/entropy", masked_sum(entropy, mask)), ("policy/approx_kl", masked_sum(k3(rows.logprobs, logprobs.detach()), mask)),
            ("value/loss", critic_loss), ("value/clip_fraction", value_clipped), ("tokens", mask.sum()),
        ):  # fmt: skip
            self.sums[name] += float(amount.detach())

    def check_first(self, logprobs: Tensor, old: Tensor, mask: Tensor) -> None:
        """Before the first step the policy is the one that sampled: its ratios must be 1.

        Raises RuntimeError otherwise: the update would follow a wrong gradient.
        """
        gaps = ((logprobs - old) * mask).abs()
        largest, mean = float(gaps.max()), float(gaps.sum() / mask.sum().clamp(min=1))
        self.ratio_first = max(self.ratio_first, math.expm1(min(largest, 50.0)))
        single, average = RATIO_TOLERANCE[self.args.precision.dtype]
        if self.ppo.ratio_tolerance is not None:
            single = average = self.ppo.ratio_tolerance
        if largest > single or mean > average:
            raise RuntimeError(
                f"rollout {self.iteration}: the first mini-batch gives log-probabilities up to {largest:.2g} nats (mean {mean:.2g}) "
                f"from the rollout's, more than {single:.2g} (mean {average:.2g}): the two passes do not compute the same function"
            )

    def note(self, name: str, norm: float | None) -> None:
        """Remember a gradient norm, if this was the end of an update."""
        if norm is not None:
            self.norms[name].append(norm)

    def metrics(self) -> dict[str, float]:
        """What the updates of this rollout measured, over all ranks."""
        names = sorted(self.sums)
        sums = dict(zip(names, total(*(self.sums[name] for name in names)), strict=True))
        tokens = max(1.0, sums.pop("tokens"))
        metrics = {name: amount if name == "policy/log_ratio_cut" else amount / tokens for name, amount in sums.items()}
        metrics |= {f"{name}/grad_norm": sum(norms) / len(norms) for name, norms in self.norms.items()}
        metrics |= {"policy/ratio_first": maximum(self.ratio_first), "policy/ratio_max": maximum(self.ratio_max)}
        return metrics | {"lr/actor": self.rates[0], "lr/critic": self.rates[1]}
