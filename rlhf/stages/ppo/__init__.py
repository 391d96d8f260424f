"""PPO."""

from collections.abc import Mapping
from dataclasses import replace

from rlhf.catalog.estimator import has_critic, has_reference
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Card, Counts, Input, Records, Side, StageKind, is_stage, kind_of
from rlhf.config.derive import is_reference_shared, is_reward_shared
from rlhf.config.keys import get_key
from rlhf.config.rewards import count_reward_models, name_models, reward_terms, stage_reward, trained_terms
from rlhf.config.schema import ZEROS, Config, Ppo
from rlhf.experiment.resolve import are_scores_normalized, default_eos_penalty_mode
from rlhf.planner.ppo import critic_of, longest_step
from rlhf.stages.ppo.checks import problems
from rlhf.stages.ppo.metrics import METRICS, PHASE_SPEED, more_metrics
from rlhf.stages.ppo.rewards import check_functions


def roles(config: Config) -> list[Role]:
    """Return the actor, the critic, the reference and the reward model, as far as the algorithm has them; with adapters
    alone, a frozen model shares the weights of the one that learns."""
    ppo = config.ppo
    held = [Role(config.model, config.zero, config.lora, ppo.ema, ppo.gradient_checkpointing)]
    if has_critic(config):
        recomputed = ppo.critic_gradient_checkpointing
        held.append(Role(critic_of(config), config.critic_zero, config.critic_lora, recomputed=recomputed, scorer=True))
    if has_reference(config) and not is_reference_shared(config):
        held.append(Role(config.model, config.reference_zero, None))
    copies = count_reward_models(config) - is_reward_shared(config)
    return held + [Role(config.reward_model, config.reward_zero, None, scorer=True) for _ in range(copies)]


def simplify(config: Config) -> Config:
    """Return a configuration without the reward stage where no reward is its model; a critic that would start from that
    model starts from the actor."""
    if stage_reward(config) is not None:
        return config
    critic = "actor" if config.ppo.critic == "reward" else config.ppo.critic
    return without_idle_reward(replace(config, ppo=replace(config.ppo, critic=critic)))


def without_idle_reward(config: Config) -> Config:
    """Return a configuration without the reward stage, unless another stage starts from the model that it makes."""
    kinds = [kind_of(stage) for stage in config.stages if is_stage(stage)]
    started = [given for kind in kinds for given in kind.find_inputs(config) if given.stage == "reward"]
    if any(given.is_made(get_key(config, given.key)) for given in started):
        return config
    return replace(config, stages=[stage for stage in config.stages if stage != "reward"])


def more_models(config: Config) -> tuple[Input, ...]:
    """Return the reward models beside the reward stage's own: those given by path, and the further members of ensembles."""
    found = []
    for reward, models in name_models(config).items():
        key, trained = f"rewards.{reward}.path", reward_terms(config)[reward].kind == "ensemble"
        for member, name in enumerate(models):
            if name != "reward":
                changes = (("reward.member", config.reward.member + member),) if trained else ()
                found.append(Input(name, key, "reward" if trained else None, changes))
    return tuple(found)


def unread_keys(config: Config) -> tuple[str, ...]:
    """Return the keys that decide nothing without a critic, or without a reference."""
    keys: tuple[str, ...] = ()
    if not has_critic(config):
        keys += (
            "critic_lora", "ppo.critic_learning_rate", "ppo.critic_weight_decay", "ppo.critic_dropout", "ppo.gae_lambda",
            "ppo.critic_gae_lambda", "ppo.critic_warmup", "ppo.value_clip_range", "ppo.value_coef",
        )  # fmt: skip
    if not has_reference(config):
        keys += ("ppo.kl_coef", "ppo.kl_estimator", "ppo.reference_refresh")
    return keys


def count_records(config: Config, counts: Counts) -> Records:
    """Prompts."""
    return Records("prompts", "prompts", counts.prompts)


def resolve(config: Config, inputs: Mapping[str, str]) -> Config:
    """Return the configuration with the critic by its directory, and `ppo.eos_penalty_mode` by what the reward model's
    scores are."""
    ppo = replace(config.ppo, critic=inputs.get("critic", config.ppo.critic))
    if ppo.eos_penalty_mode is None:
        normalized = config.reward.normalize == "standard" if ppo.reward is None else are_scores_normalized(ppo.reward)
        normalized = normalized and list(trained_terms(config)) == [stage_reward(config)]
        ppo = replace(ppo, eos_penalty_mode=default_eos_penalty_mode(normalized))
    return replace(config, ppo=ppo)


def check(config: Config, inputs: Mapping[str, str]) -> None:
    """Look at the texts of the pre-training loss, and at the models that are given by path. Raises ConfigError."""
    from rlhf.data.text import load_texts
    from rlhf.models.adapters import check_new_adapters
    from rlhf.models.source import Source

    ppo = config.ppo
    downloaded = ppo.ptx.source == "hub"
    if ppo.ptx_coef > 0 and ppo.ptx.source != "demonstrations" and not (downloaded and config.dry_run):
        load_texts(ppo.ptx)
    starts = {"lora": "actor"}
    if has_critic(config):
        starts["critic_lora"] = ppo.critic if ppo.critic in inputs else "critic"
    for lora, start in starts.items():
        check_new_adapters(config, lora, Source(inputs[start], f"ppo.{start}"))
    for given in KIND.find_inputs(config):
        if given.name in inputs and (given.stage is None or get_key(config, given.key) is not None):
            from rlhf.models.preflight import check_source  # which imports torch

            model = config.model if given.name == "actor" else config.reward_model
            source = Source(inputs[given.name], given.key, trust_remote_code=model.trust_remote_code)
            check_source(source, config, scorer=given.name != "actor")
    check_functions(config)


KIND = StageKind(
    name="ppo",
    run="rlhf.stages.ppo.train:run",
    result_keys=(
        "seed", "precision", "lora", "critic_lora", "data", "ppo", "rollout", "rewards", "gold",
        *ZEROS,
    ),
    unread_keys=unread_keys,
    schema=Ppo,
    section="ppo",
    metrics=(*METRICS, *PHASE_SPEED),
    more_metrics=more_metrics,
    headline=("reward/mean", "throughput/samples_per_s"),
    compared=(("eval/gold", "eval/reward", "eval/kl_sequence", "eval/length"),),
    sides=(Side("sft", "SFT"), Side("ppo", "policy")),
    step="policy step",
    inputs=(
        Input("actor", "ppo.actor", "sft"),
        Input("reward", "ppo.reward", "reward", is_used=lambda config: stage_reward(config) is not None),
        Input("critic", "ppo.critic", is_used=has_critic),
    ),
    more_inputs=more_models,
    model_keys=("model", "reward_model"),
    trained=("zero", "critic_zero"),
    roles=roles,
    batch_key="rollout_batch_size",
    copies=lambda config: config.rollout.samples_per_prompt,
    updates=lambda config: config.ppo.update_epochs * (config.ppo.rollout_batch_size // config.ppo.batch_size),
    records=count_records,
    samples_responses=True,
    reads=lambda config: "prompts",
    phase_flops=lambda config, answers: longest_step(config),
    resolve=resolve,
    simplify=simplify,
    problems=problems,
    check=check,
    cards={
        "ppo": Card("a language model trained on its own responses, against rewards"),
        "critic": Card("the critic of a policy", scorer=True, starts=("critic", "reward"), lora="critic_lora"),
        "ema": Card("a moving average of a policy during training"),
    },
)  # fmt: skip
