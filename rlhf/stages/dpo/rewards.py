"""The rewards that judge a policy which learns from pairs: it is trained on none of them."""

from rlhf.catalog.stage import Input
from rlhf.config.rewards import is_stage_model, reward_terms, stage_reward
from rlhf.config.schema import Config
from rlhf.config.sections import with_rewards
from rlhf.stages.ppo import more_models


def choose_judges(config: Config) -> Config:
    """Return the configuration with the rewards that judge. No reward model is trained for that alone: those of the reward
    stage are among them where the stage is asked for, or `ppo.reward` gives its model."""
    if "reward" in config.stages or config.ppo.reward is not None:
        return config
    kept = {name: term for name, term in reward_terms(config).items() if not is_stage_model(term)}
    return config if len(kept) == len(reward_terms(config)) else with_rewards(config, kept)


def list_judges(config: Config) -> tuple[Input, ...]:
    """Return the reward models that judge."""
    judged = choose_judges(config)
    own = (Input("reward", "ppo.reward", "reward"),) if stage_reward(judged) is not None else ()
    return own + more_models(judged)


def list_unread(config: Config) -> tuple[str, ...]:
    """Return the keys of rewards that decide nothing: of those that do not judge, and how training would shape scores."""
    judging = reward_terms(choose_judges(config))
    dropped = tuple(f"rewards.{name}" for name in reward_terms(config) if name not in judging)
    shaping = tuple(f"rewards.{name}.{key}" for name in judging for key in ("clip", "normalize"))
    return dropped + shaping + (() if list_judges(config) else ("reward_zero",))
