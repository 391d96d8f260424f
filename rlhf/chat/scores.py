"""Rewards of answers: those that the policy was trained on, and the gold reward."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlhf.chat.model import Messages, without_lengths
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import DEFAULTS, gold_term, name_models, reward_terms
from rlhf.config.schema import Config, RewardTerm
from rlhf.config.sections import with_rewards
from rlhf.data.dataset import Prompt
from rlhf.data.records import find_gold, simplify_prompt
from rlhf.experiment.files import as_mapping, as_text
from rlhf.experiment.graph import model_path
from rlhf.experiment.policies import Policy
from rlhf.models.preflight import check_source
from rlhf.models.source import Source
from rlhf.rewards.sample import Sample
from rlhf.rewards.service import ModelScorer
from rlhf.rewards.texts import to_plain
from rlhf.rewards.total import build_text_reward, combine_members

# Scores a prompt's response, of which it is said whether it came to its end; None where the reward does not apply.
Score = Callable[[Prompt, str, bool], float | None]


class Scorer:
    """Scores answers by all rewards that are known, which it loads once.

    Args:
        policy: The policy, whose stage or run says on which rewards it was trained.
        config: Device and number format; `gold`, where another one is wanted.
        reward: The directory or hub id of a reward model beside these.

    Raises:
        ConfigError: No reward is known, or one cannot be loaded.
    """

    def __init__(self, policy: Policy, config: Config, reward: str | None) -> None:
        self.config, self.rewards = config, dict[str, Score]()
        self.loaded: dict[str, ModelScorer] = {}
        if reward is not None:
            self.rewards["reward"] = self.load("--reward", [reward], None)
        elif policy.stage is not None:
            self.add_trained(policy)
        if config.gold is not None:
            self.rewards["gold"] = read_texts("gold", gold_term(config))
        if not self.rewards:
            problem = "neither its stage nor its run has a reward"
            raise ConfigError("--reward", "", f"no reward of {policy.given} is known: {problem}", "give --reward DIR")

    def __call__(self, prompt: Messages, response: str, ended: bool) -> dict[str, float]:
        """Return the score of an answer by each reward that applies to it."""
        asked = simplify_prompt(prompt)
        found = {name: score(asked, response, ended) for name, score in self.rewards.items()}
        return {name: value for name, value in found.items() if value is not None}

    def add_trained(self, policy: Policy) -> None:
        """Add the rewards of the configuration that a policy was trained with."""
        saved, known = with_saved_rewards(self.config, policy.spec), policy.rewards
        models = name_models(saved)
        for name, term in reward_terms(saved).items():
            paths = [known[model] for model in models.get(name, []) if model in known]
            if paths:
                self.rewards[name] = self.load(f"rewards.{name}", paths, term)
            elif name not in models:
                self.rewards[name] = read_texts(f"rewards.{name}", term)
        gold = gold_term(saved)
        if gold is not None and saved.gold not in self.rewards:
            self.rewards["gold"] = read_texts("gold", gold)
        elif gold is None and (judge := find_gold(saved)) is not None:
            self.rewards["gold"] = judge_demo(judge)

    def load(self, key: str, paths: Sequence[str], term: RewardTerm | None) -> Score:
        """Load a reward's models, each once."""
        for path in paths:
            if path not in self.loaded:
                source, config = Source(model_path(path), key), without_lengths(self.config)
                check_source(source, config, scorer=True)
                self.loaded[path] = ModelScorer(source, replace(config, reward_zero=replace(config.zero, stage=0)), 1)
        scorers = [self.loaded[path] for path in paths]

        def score(prompt: Prompt, response: str, ended: bool) -> float:
            asked = {"prompts": [to_plain(prompt)], "responses": [response], "ended": [ended]}
            found = [value for scorer in scorers for value in scorer(asked) if value is not None]
            return found[0] if term is None else float(combine_members(term, torch.tensor([found]))[0])

        return score


def with_saved_rewards(config: Config, spec: Mapping[str, Any]) -> Config:
    """Return a configuration with the rewards and the gold reward that a stage was run with, as far as this release knows
    their keys."""
    saved = as_mapping(spec.get("config"))
    terms = {}
    for name, term in as_mapping(saved.get("rewards")).items():
        known = {key: value for key, value in as_mapping(term).items() if key in DEFAULTS}
        terms[name] = RewardTerm(**(DEFAULTS | known))
    return replace(with_rewards(config, terms), gold=as_text(saved.get("gold")))


def read_texts(key: str, term: RewardTerm | None) -> Score:
    """Return the score by a function or a service."""
    assert term is not None
    reward = build_text_reward(key, term)

    def score(prompt: Prompt, response: str, ended: bool) -> float | None:
        reward.ask([Sample(to_plain(prompt), response, {}, ended)])
        return reward.answer()[0]

    return score


def judge_demo(judge: Callable[[Prompt, str], float]) -> Score:
    """Return the score by the gold reward of the demo, which applies to the demo's own questions alone."""

    def score(prompt: Prompt, response: str, ended: bool) -> float | None:
        try:
            return judge(prompt, response)
        except ValueError:
            return None

    return score
