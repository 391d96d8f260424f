"""What the keys that make an algorithm may not hold together."""

from collections.abc import Iterator
from typing import Any

from rlhf.catalog.estimator import ESTIMATORS, has_critic, has_reference, needs_of
from rlhf.config.derive import is_reference_shared
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config


def algorithm_problems(config: Config) -> Iterator[ConfigError]:
    """Find switches that contradict each other, or that would do nothing."""
    try:
        needs_of(config.ppo.estimator)
    except ConfigError as error:
        yield error
        return
    yield from group_problems(config)
    yield from kl_problems(config)
    yield from critic_problems(config)
    yield from loss_problems(config)
    yield from length_problems(config)
    yield from token_problems(config)
    if config.ppo.estimator == "online_dpo":
        yield from online_dpo_problems(config)


def refuse(key: str, value: Any, problem: str, fix: str) -> ConfigError:
    """Return the error of a key of `ppo`."""
    return ConfigError(f"ppo.{key}", value, problem, fix)


def group_problems(config: Config) -> Iterator[ConfigError]:
    """Find switches of groups where there is none, or whose responses cannot differ."""
    ppo, rollout = config.ppo, config.rollout
    if "group" in needs_of(ppo.estimator) or ppo.dynamic_sampling:
        switch = f"ppo.estimator={ppo.estimator}" if "group" in needs_of(ppo.estimator) else "ppo.dynamic_sampling=true"
        problem = f"{switch} compares the responses to a prompt, and there is one alone"
        if not rollout.do_sample:
            fix = "set rollout.do_sample=true, or choose algorithm=remax"
            yield ConfigError("rollout.do_sample", False, f"{switch} compares responses, and all would be the same", fix)
        elif rollout.samples_per_prompt == 1:
            yield ConfigError("rollout.samples_per_prompt", 1, problem, "set it to 4, or choose algorithm=reinforce_pp")
    if "greedy" in needs_of(ppo.estimator) and not rollout.do_sample:
        problem = f"ppo.estimator={ppo.estimator} compares responses with the likeliest one, which all would be"
        yield ConfigError("rollout.do_sample", False, problem, "set it true")
    if ppo.group_std and ppo.estimator != "grpo":
        problem = f"ppo.estimator={ppo.estimator} does not divide by the group's deviation"
        yield refuse("group_std", True, problem, "set it false, or ppo.estimator=grpo")
    if ppo.group_std and ppo.whiten_advantages:
        problem = "with ppo.group_std=true advantages are scaled within the group already"
        yield refuse("whiten_advantages", True, problem, "choose one of the two")
    if ppo.estimator == "raft" and ppo.whiten_advantages:
        problem = "ppo.estimator=raft gives the best responses an advantage of 1, of which their mean would leave 0"
        yield refuse("whiten_advantages", True, problem, "set it false")
    if ppo.group_of == "each":
        yield from each_problems(config)
    if ppo.best_share is not None and ppo.estimator != "raft":
        problem = f"ppo.estimator={ppo.estimator} learns from all responses"
        yield refuse("best_share", ppo.best_share, problem, "set it null, or algorithm=raft")
    if ppo.baseline_of == "score" and (ppo.estimator not in ("rloo", "grpo") or ppo.kl_placement != "reward"):
        problem = "it differs from `rewards` only for ppo.estimator=rloo or grpo with ppo.kl_placement=reward"
        yield refuse("baseline_of", "score", problem, "set ppo.baseline_of=rewards")
    if ppo.baseline_of == "score" and (ppo.group_std or ppo.whiten_rewards):
        other = "group_std" if ppo.group_std else "whiten_rewards"
        yield refuse(other, True, "with ppo.baseline_of=score it would scale the KL penalties too", "choose one of the two")


def each_problems(config: Config) -> Iterator[ConfigError]:
    """Find what is no reward that could be normalised within its group, and groups that nothing is normalised in."""
    ppo = config.ppo
    if not (ppo.group_std and ppo.estimator == "grpo"):
        told = "ppo.group_std=false" if ppo.estimator == "grpo" else f"ppo.estimator={ppo.estimator}"
        problem = f"{told} normalises no reward within its group"
        yield refuse("group_of", "each", problem, "set ppo.group_of=total, or algorithm=gdpo")
    for key, off in (("reward_clip", None), ("eos_penalty", None), ("length_penalty", 0.0), ("overlong_buffer", 0.0)):
        if getattr(ppo, key) != off:
            problem = "it acts on the sum of the rewards, and with ppo.group_of=each that is of normalised ones"
            fix = f"set it {'null' if off is None else '0'}, and add a reward of its own if need be"
            yield refuse(key, getattr(ppo, key), problem, fix)
    if ppo.kl_placement == "reward":
        problem = "with ppo.group_of=each rewards are those of whole responses"
        yield refuse("kl_placement", "reward", problem, "set ppo.kl_placement=loss or none")


def kl_problems(config: Config) -> Iterator[ConfigError]:
    """Find a KL penalty that has no gradient or nothing to act on."""
    ppo, online_dpo = config.ppo, config.ppo.estimator == "online_dpo"
    if ppo.kl_placement == "loss" and ppo.kl_estimator == "k1":
        problem = "in the loss its gradient is 0 in expectation"
        yield refuse("kl_estimator", "k1", problem, "set ppo.kl_estimator=k3 or k2, or ppo.kl_placement=reward")
    if ppo.kl_placement != "reward" and ppo.kl_controller == "adaptive" and (ppo.kl_placement == "none" or online_dpo):
        problem = "with ppo.kl_placement=none there is no penalty to steer"
        yield refuse("kl_controller", "adaptive", problem, "set it fixed, or ppo.kl_placement=reward or loss")
    if ppo.reference_refresh is None:
        return
    value = ppo.reference_refresh
    if not has_reference(config):
        yield refuse("reference_refresh", value, "with ppo.kl_placement=none there is no reference", "set it null")
    elif config.lora.rank > 0 and not is_reference_shared(config):
        problem = "the reference has no adapters that the actor's could be copied to"
        yield refuse("reference_refresh", value, problem, "set it null, or train without adapters: lora=none")
    elif is_reference_shared(config):
        problem = "the reference is the actor with its adapters off, and stays that"
        yield refuse("reference_refresh", value, problem, "set it null, or train without adapters: lora=none")
    elif (config.zero.stage == 3) != (config.reference_zero.stage == 3):
        problem = "zero.stage and reference_zero.stage shard the two differently"
        yield refuse("reference_refresh", value, problem, "set zero@reference_zero=same")


def critic_problems(config: Config) -> Iterator[ConfigError]:
    """Find switches of a critic where there is none."""
    ppo = config.ppo
    if has_critic(config):
        return
    for key, off in (("critic_warmup", 0), ("critic_gae_lambda", None)):
        value = getattr(ppo, key)
        if value != off:
            fix = f"set it {'null' if off is None else off}, or algorithm=ppo"
            yield refuse(key, value, f"ppo.estimator={ppo.estimator} has no critic", fix)


def loss_problems(config: Config) -> Iterator[ConfigError]:
    """Find switches of the policy's loss that do nothing, or not what they are named after."""
    ppo = config.ppo
    if ppo.policy_loss == "likelihood":
        for key, off in (("clip_range_high", None), ("dual_clip", None), ("ratio_level", "token")):
            if getattr(ppo, key) != off:
                problem = "ppo.policy_loss=likelihood has no ratio"
                fix = f"set it {'null' if off is None else off}, or ppo.policy_loss=clipped"
                yield refuse(key, getattr(ppo, key), problem, fix)
    if ppo.ratio_level == "token":
        return
    if ppo.loss_aggregation != "sequence_mean":
        problem = f"with ppo.ratio_level={ppo.ratio_level} a response has one loss, which it would weigh by its length"
        yield refuse("loss_aggregation", ppo.loss_aggregation, problem, "set ppo.loss_aggregation=sequence_mean")
    known = ESTIMATORS.get(ppo.estimator)
    if (known is not None and not known.is_even) or ppo.baseline_of == "score":
        told = "ppo.baseline_of=score" if ppo.baseline_of == "score" else f"ppo.estimator={ppo.estimator}"
        problem = f"{told} gives each token an advantage of its own, and a ratio of sequences wants one"
        yield refuse("ratio_level", ppo.ratio_level, problem, "set ppo.ratio_level=token, or ppo.estimator=rloo or grpo")


def length_problems(config: Config) -> Iterator[ConfigError]:
    """Find what is done about long responses where none is shorter."""
    ppo, rollout = config.ppo, config.rollout
    if not (rollout.fixed_length or rollout.min_new_tokens == rollout.max_new_tokens):
        return
    if ppo.overlong_filter:
        problem = "with responses of fixed length none ends, so all would be left out of the loss"
        yield refuse("overlong_filter", True, problem, "set it false")
    if ppo.overlong_buffer > 0:
        problem = "with responses of fixed length all are punished alike"
        yield refuse("overlong_buffer", ppo.overlong_buffer, problem, "set it 0")


def token_problems(config: Config) -> Iterator[ConfigError]:
    """Find what is done to the rewards of tokens where those of whole responses are read."""
    ppo, known = config.ppo, ESTIMATORS.get(config.ppo.estimator)
    if known is not None and known.is_even and ppo.baseline_of == "rewards" and ppo.gamma != 1:
        problem = f"ppo.estimator={ppo.estimator} sums the rewards of a response without a discount"
        yield refuse("gamma", ppo.gamma, problem, "set it 1, or choose algorithm=ppo, reinforce_pp or remax")
    if ppo.whiten_rewards and (ppo.group_of == "each" or ppo.estimator == "online_dpo"):
        told = "ppo.group_of=each" if ppo.group_of == "each" else "ppo.estimator=online_dpo"
        yield refuse("whiten_rewards", True, f"{told} reads scores, not the rewards of tokens", "set it false")


def online_dpo_problems(config: Config) -> Iterator[ConfigError]:
    """Find settings with which the updates would not follow the DPO loss."""
    ppo, copies = config.ppo, config.rollout.samples_per_prompt
    if copies > 2:
        fix = "set it to 2"
        yield ConfigError("rollout.samples_per_prompt", copies, "ppo.estimator=online_dpo compares two responses", fix)
    needed = {"policy_loss": "likelihood", "loss_aggregation": "sequence_sum", "kl_placement": "none", "update_epochs": 1}
    needed |= {"batch_size": ppo.rollout_batch_size, "whiten_advantages": False}
    needed |= {"train_on_eos": True, "overlong_filter": False}  # both responses of a pair count, with all their tokens
    for key, value in needed.items():
        if getattr(ppo, key) != value:
            problem = "ppo.estimator=online_dpo is the gradient of the DPO loss in one update of a whole rollout"
            yield refuse(key, getattr(ppo, key), problem, f"set it {str(value).lower()}")
