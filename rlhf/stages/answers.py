"""Held-out answers of a policy that learns without sampling, beside those of the policy that it started from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.derive import is_reference_shared
from rlhf.config.schema import Config
from rlhf.data.records import find_gold
from rlhf.data.tokenized import DataSource
from rlhf.engine.zero import frozen_engine
from rlhf.evaluation.heldout import Answer, PolicyEvaluation, Show, align, compare, heldout_prompts
from rlhf.models.load import load_policy
from rlhf.models.source import Source
from rlhf.ppo.engine import AdaptersOff
from rlhf.rewards.judges import Judges
from rlhf.rollout import create_sampler
from rlhf.runtime.distributed import device
from rlhf.stages.context import Context


class HeldoutAnswers:
    """Answers the held-out prompts before training and at each evaluation, and compares.

    Args:
        config: The configuration, with the rewards that judge.
        context: Where the answers are logged.
        data: The data set.
        source: The policy that training starts from.
        engine: The engine that trains it, before its first step.
        judged_by: Directories or hub ids of the reward models by their names among the stage's inputs.
        tokenizer: The policy's.
        size: Prompts that a rank answers at once.
        packing: How sequences are laid out for a forward pass.
    """

    def __init__(
        self, config: Config, context: Context, data: DataSource, source: Source, engine: Any,
        judged_by: Mapping[str, str], tokenizer: Any, size: int, packing: str,
    ) -> None:  # fmt: skip
        self.config, self.context, self.source, self.engine = config, context, source, engine
        self.judges = Judges(config, judged_by, tokenizer, packing)
        self.judges.load(device(config))
        prompts = heldout_prompts(data, tokenizer)
        self.evaluation = PolicyEvaluation(config, self.judges, prompts, size, packing, find_gold(config))
        self.create = lambda: create_sampler(engine, tokenizer, config.rollout)
        self.before: list[Answer] = []

    def begin(self, kept: list[dict[str, Any]], say: Callable[[str], None]) -> None:
        """Take over the answers from before the first step that a checkpoint kept, or give them."""
        self.before = [Answer(**answer) for answer in kept] or self.answer(self.engine, say)

    def numbers(self) -> list[dict[str, Any]]:
        """Return the answers from before the first step, for a checkpoint."""
        return [asdict(answer) for answer in self.before]

    def measure(self, step: int, is_last: bool, say: Callable[[str], None]) -> dict[str, float]:
        """Return the metrics of the policy's answers after a step, and log some of the answers, or all after the last."""
        with self.start_policy() as start:
            after = self.answer(start, say)
        self.context.tracker.samples(step, align(self.before, after, kind_of(self.context.spec.stage).sides, is_last))
        return compare(self.before, after)

    def answer(self, start: Any, say: Callable[[str], None]) -> list[Answer]:
        """Return the policy's answers, with the KL to another policy; the sampler's cache is freed afterwards."""
        show: Show = lambda done, of: say(f"answering held-out prompts {done}/{of}")  # noqa: E731
        sampler = self.create()
        found = self.evaluation.answer_prompts(self.engine, sampler, start, show)
        sampler.release()
        return found

    @contextmanager
    def start_policy(self) -> Iterator[Any]:
        """Hold the policy that training started from meanwhile: the engine with its adapters off, where they alone are
        trained, or a copy that is loaded and freed."""
        config = self.config
        if is_reference_shared(config):
            yield AdaptersOff(self.engine)
            return
        start = frozen_engine(load_policy(self.source, config, config.zero, 0.0), config, config.zero)
        try:
            yield start
        finally:
            start.destroy()

    def close(self) -> None:
        """Free the reward models, and end the processes of functions."""
        self.judges.total.close()
        for model in self.judges.models.values():
            model.destroy()
