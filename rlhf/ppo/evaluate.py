"""Held-out evaluation of the actor while it trains, with the models of its engine (rlhf/evaluation/heldout.py)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlhf.config.schema import Config
from rlhf.evaluation.heldout import Answer, PolicyEvaluation, Prompt, Show
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.rewards.judges import Gold


class Evaluation(PolicyEvaluation):
    """Answers held-out prompts with the actor, or with the policy that it started from."""

    def __init__(self, engine: DeepSpeedRLHFEngine, config: Config, gold: Gold | None, prompts: Sequence[Prompt]) -> None:
        ppo = config.ppo
        super().__init__(config, engine.judges, prompts, engine.batches.micro, ppo.packing, gold)
        self.engine = engine
        self.has_begun = True  # whether the actor has learned from a rollout

    def answers_before(self, show: Show | None = None) -> list[Answer]:
        """Return the answers of the policy that training starts from: of the reference, or, before the first update, of the
        actor where there is none."""
        if self.engine.ref is not None:
            return self.answers(self.engine.ref, show)
        self.has_begun = False
        found = self.answers(self.engine.actor, show)
        self.has_begun = True
        return found

    def answers(self, policy: Any, show: Show | None = None) -> list[Answer]:
        """Return the answers of the actor or the reference, in the prompts' order, on every rank."""
        with self.engine.models_on_device("ref", "reward"), self.start_policy(policy) as start:
            sampler = self.engine.sampler_of(policy, self.config.rollout)
            return self.answer_prompts(policy, sampler, start, show)

    @contextmanager
    def start_policy(self, policy: Any) -> Iterator[Any]:
        """Hold the policy that training started from meanwhile. Before the first update that is the actor too."""
        if policy is self.engine.ref or not self.has_begun:
            yield policy
            return
        with self.engine.start_policy() as start:
            yield start
