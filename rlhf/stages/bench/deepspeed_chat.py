"""DeepSpeed-Chat's step 3 on our engines, the benchmark's baseline: the work of its `ppo_trainer.py` (DeepSpeedExamples,
commit 45b4b71) and no other, in code of its own, so that no change of ours changes it.

Prompts are padded to `data.max_prompt_tokens`, and a rollout to its longest response; transformers' generate takes the
likeliest token, since no sampling is asked for there; policy, reference, reward model and critic each read all columns in a
pass of their own; logits and log-probabilities are of all positions; an update reads the same rectangle again, rows in
order. Without a critic or a reference in the algorithm, their passes are left out.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf.config.schema import Config
from rlhf.data.tokens import PromptBatch
from rlhf.models.heads import model_inputs
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.experience import Experience
from rlhf.stages.bench.generate import Rollout, generate
from rlhf.tracking.throughput import Clock


class DeepSpeedChatTrainer:
    """DeepSpeed-Chat's trainer, with the two calls of ours; `clock` has the seconds of the phases of the last of each."""

    def __init__(self, engine: DeepSpeedRLHFEngine, args: Config) -> None:
        self.engine, self.args, self.ppo = engine, args, args.ppo
        self.micro = engine.batches.micro
        self.clock, self.metrics = Clock(), {"train/nonfinite": 0.0}

    @torch.no_grad()
    def generate_experience(self, prompts: PromptBatch) -> Experience:
        """Answer the prompts, and let all models read the answers."""
        engine, self.clock = self.engine, Clock()
        with engine.models_on_device("critic", "ref", "reward"):
            with self.clock.phase("rollout"):
                rollout = generate(engine, self.args, prompts, do_sample=False)
            with self.clock.phase("score"):
                return self.score(rollout)

    def score(self, rollout: Rollout) -> Experience:
        """Let policy, reference, reward model and critic read prompts and responses, and estimate advantages."""
        engine, mask, (ids, whole) = self.engine, rollout.said_mask, rollout.sequences()
        width, ends = mask.size(1), rollout.asked.size(1) - 1 + mask.sum(1, keepdim=True)
        found: dict[str, list[Tensor]] = {name: [] for name in ("policy", "reference", "scores", "values")}
        for rows in torch.arange(len(ids), device=ids.device).split(self.micro):
            part = ids[rows], whole[rows]
            found["policy"].append(self.logprobs(engine.actor, *part)[:, -width:])
            if engine.ref is not None:
                found["reference"].append(self.logprobs(engine.ref, *part)[:, -width:])
            outputs = engine.reward(**model_inputs(engine.reward, *part))
            found["scores"].append(outputs.gather(1, ends[rows]).squeeze(1))
            if engine.critic is not None:
                found["values"].append(self.values(*part)[:, -width:])
        logprobs, scores = torch.cat(found["policy"]), torch.cat(found["scores"])
        reference = torch.cat(found["reference"]) if found["reference"] else None
        values = torch.cat(found["values"]) * mask if found["values"] else None
        kl = torch.zeros_like(logprobs) if reference is None else logprobs - reference
        rewards = -self.ppo.kl_coef * kl * mask
        clip = math.inf if self.ppo.reward_clip is None else self.ppo.reward_clip
        rewards[torch.arange(len(ids)), mask.sum(1) - 1] += scores.clamp(-clip, clip)
        before = torch.zeros_like(rewards) if values is None else values
        advantages = self.advantages(before, rewards)
        return Experience(
            rollout.asked, rollout.asked_mask, rollout.said, mask, mask, logprobs, rewards, advantages, scores, reference,
            values, advantages + before,
        )  # fmt: skip

    def logprobs(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the log-probabilities [B, T - 1] of all tokens but the first, padding included."""
        logits = model(**model_inputs(model, ids, mask), use_cache=False).logits
        found = F.log_softmax(logits[:, :-1].float(), dim=-1)
        return found.gather(-1, ids[:, 1:, None]).squeeze(-1)

    def values(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the critic's values [B, T - 1] of all states but the last."""
        critic = self.engine.critic
        outputs: Tensor = critic(**model_inputs(critic, ids, mask))
        return outputs[:, :-1]

    def advantages(self, values: Tensor, rewards: Tensor) -> Tensor:
        """Estimate advantages [B, R], from the last token to the first."""
        found, after = [], torch.zeros_like(values[:, 0])
        for step in reversed(range(values.size(1))):
            next_value = values[:, step + 1] if step + 1 < values.size(1) else torch.zeros_like(after)
            surprise = rewards[:, step] + self.ppo.gamma * next_value - values[:, step]
            after = surprise + self.ppo.gamma * self.ppo.gae_lambda * after
            found.append(after)
        return torch.stack(found[::-1], dim=1)

    def train_rlhf(self, experience: Experience) -> None:
        """Update policy and critic, micro-batch by micro-batch; DeepSpeed steps at the last one of each update."""
        engine, losses = self.engine, []
        for model in (engine.actor, engine.critic):
            if model is not None:
                model.train()
        with self.clock.phase("train"):
            for _ in range(self.ppo.update_epochs):
                for rows in torch.arange(len(experience.mask), device=engine.device).split(self.micro):
                    losses += self.train(experience.rows(rows))
            self.metrics = {"train/nonfinite": float(not torch.stack(losses).isfinite().all())}

    def train(self, rows: Experience) -> list[Tensor]:
        """Take a backward pass of policy and critic each; returns their losses."""
        engine, mask, ids = self.engine, rows.mask, rows.sequences()
        width, count, clip = mask.size(1), mask.sum(), self.ppo.clip_range
        ratio = ((self.logprobs(engine.actor, *ids)[:, -width:] - rows.logprobs) * mask).exp()
        worse = torch.max(-rows.advantages * ratio, -rows.advantages * ratio.clamp(1 - clip, 1 + clip))
        losses = [(worse * mask).sum() / count]
        engine.actor.backward(losses[0])
        engine.actor.step()
        if engine.critic is not None:
            assert rows.values is not None and rows.returns is not None
            values, near = self.values(*ids)[:, -width:], self.ppo.value_clip_range
            clipped = torch.clamp(values, rows.values - near, rows.values + near)
            errors = torch.max((values - rows.returns) ** 2, (clipped - rows.returns) ** 2)
            losses.append(0.5 * (errors * mask).sum() / count)
            engine.critic.backward(losses[1])
            engine.critic.step()
        return [loss.detach() for loss in losses]
