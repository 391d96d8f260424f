"""What the keys of PPO may not hold together with other keys."""

from collections.abc import Iterator

from rlhf.catalog.estimator import has_critic
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import stage_reward
from rlhf.config.schema import LORAS, ZEROS, Config, Lora
from rlhf.stages.ppo.algorithms import algorithm_problems, refuse
from rlhf.stages.ppo.rewards import reward_problems


def problems(config: Config) -> Iterator[ConfigError]:
    """Find switches that contradict each other, an actor and a critic that cannot share a tokenizer, and adapters that PPO
    cannot merge."""
    yield from algorithm_problems(config)
    yield from sampler_problems(config)
    yield from reuse_problems(config)
    given = config.ppo.actor is not None or config.ppo.reward is not None or stage_reward(config) is None
    other = (config.model.path is None) != (config.reward_model.path is None)
    if has_critic(config) and config.ppo.critic == "reward" and not given and other:
        yield ConfigError(
            "ppo.critic",
            "reward",
            f"the tokenizer of reward_model={config.reward_model.name} is not that of model={config.model.name}, so no "
            "critic can start from it",
            f"try ppo.critic=actor or reward_model={config.model.name}",
        )
    yield from reward_problems(config)
    for key in LORAS:
        lora: Lora = getattr(config, key)
        if lora.rank > 0 and not lora.save_merged:
            yield from unmerged_problems(config, key)


def sampler_problems(config: Config) -> Iterator[ConfigError]:
    """Find settings with which the sampler's log-probabilities cannot take the place of the actor's."""
    ppo = config.ppo
    if ppo.old_logprobs != "sampler":
        return
    if ppo.dropout > 0:
        problem = f"with ppo.dropout={ppo.dropout} no pass could tell how far the sampler is from the trainer"
        yield refuse("old_logprobs", "sampler", problem, "set it actor, or ppo.dropout=0")
    if ppo.ratio_tolerance is not None:
        problem = "with ppo.old_logprobs=sampler the first mini-batch is compared with the sampler"
        yield refuse("ratio_tolerance", ppo.ratio_tolerance, problem, "set it null, and ppo.sampler_tolerance instead")
    if config.rollout.engine == "paged":
        problem = "which responses share a pass of rollout=paged depends on time, so the same run would round otherwise"
        yield refuse("old_logprobs", "sampler", problem, "set it actor, or try rollout=hybrid")


def reuse_problems(config: Config) -> Iterator[ConfigError]:
    """Find settings with which an update cannot go back through the passes of scoring."""
    ppo, critic = config.ppo, has_critic(config)
    if not ppo.reuse_forward:
        return
    zeros = {"zero": config.zero} | ({"critic_zero": config.critic_zero} if critic else {})
    loras = {"lora": config.lora} | ({"critic_lora": config.critic_lora} if critic else {})
    reasons = {
        "several updates follow a rollout": ppo.update_epochs > 1 or ppo.batch_size != ppo.rollout_batch_size,
        "dropout makes the two passes different": ppo.dropout > 0 or (critic and ppo.critic_dropout > 0),
        "ppo.dynamic_sampling draws what no update reads": ppo.dynamic_sampling,
        "in the critic's warm-up the actor does not learn": ppo.critic_warmup > 0,
        "with ppo.packing=none the two passes have other widths": ppo.packing == "none",
        "ppo.offload_idle moves weights in between": ppo.offload_idle is True,
        "adapters are turned off and on in between": any(lora.rank > 0 for lora in loras.values()),
        "it is for float32 at ZeRO stage 0": config.precision.dtype != "fp32" or any(z.stage > 0 for z in zeros.values()),
        "nothing is read in scoring": ppo.old_logprobs == "sampler" and not critic,
    }
    for problem in (reason for reason, holds in reasons.items() if holds):
        yield refuse("reuse_forward", True, problem, "set it false")


def unmerged_problems(config: Config, key: str) -> Iterator[ConfigError]:
    """Find why the adapters of the group `key` must be merged when they are saved."""
    sharded = next((name for name in ZEROS if getattr(config, name).stage == 3), None)
    if sharded is not None:
        problem = f"PPO cannot merge them into a model that {sharded}.stage=3 shards"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true")
    before = {"lora": ("sft", config.lora), "critic_lora": ("sft", config.lora)}
    if config.ppo.critic == "reward":
        before["critic_lora"] = ("reward", config.reward_lora)
    earlier, first = before.get(key, (None, None))
    if earlier in config.stages and first is not None and not first.save_merged:
        problem = f"PPO starts from the {earlier} stage's adapters, which its own by themselves would leave out"
        yield ConfigError(f"{key}.save_merged", False, problem, "set it true")
