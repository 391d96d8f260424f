"""The models of step 3: actor and critic, which learn, reference and reward model, which do not. Where the algorithm has no
critic or no reference, there is none in memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from rlhf.catalog.estimator import has_critic, has_reference
from rlhf.config.derive import Batches, is_reference_shared, is_reward_shared, policy_stage
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import stage_reward
from rlhf.config.schema import Config, Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.engine.offload import OffloadedEngine
from rlhf.engine.zero import TrainingSpec, frozen_engine, release, training_engine
from rlhf.models.heads import ScalarHeadModel
from rlhf.models.load import load_policy, load_scorer, scorer_with_new_head
from rlhf.models.preflight import check_source
from rlhf.models.source import Source
from rlhf.models.tokenizer import have_same_vocabulary, load_tokenizer
from rlhf.planner.auto import choose_layout
from rlhf.planner.batches import batches
from rlhf.rewards.judges import Judges
from rlhf.rewards.model import ModelReward
from rlhf.rollout import create_sampler
from rlhf.rollout.base import Sampler
from rlhf.runtime import distributed


class DeepSpeedRLHFEngine:
    """Actor, reference, critic and reward model as DeepSpeed engines; `critic` and `ref` are None where the algorithm has
    none (`ppo.estimator`, `ppo.kl_placement`).

    Where adapters alone are trained, the reference is the actor with its adapters off, and the reward model the critic with
    its own off: no second copy of the weights.

    Args:
        actor_model_name_or_path: directory or hub id of the causal language model that PPO starts from; the reference is
            what it is then.
        critic_model_name_or_path: directory or hub id of a sequence classifier with one label: the reward model, and
            where the critic, if there is one, starts unless `args.ppo.critic` says otherwise. None where `args.rewards`
            have no such model.
        tokenizer: the actor's. The critic must share it; a reward model with another one reads the decoded text.
        num_total_iters: rollouts to come; learning rates fall to their end over them.
        args: the configuration. The planner chooses what is `auto` in it.
        reward_model_paths: directories or hub ids of the reward models beside the one above, by their names among the
            stage's inputs: `reward NAME` of rewards.NAME, by default its path; `reward NAME 1` and so on of an ensemble.

    Raises:
        ConfigError: a model cannot be loaded, or the critic's tokenizer is another one.
    """

    def __init__(
        self,
        actor_model_name_or_path: str,
        critic_model_name_or_path: str | None,
        tokenizer: Tokenizer,
        num_total_iters: int,
        args: Config,
        reward_model_paths: Mapping[str, str] | None = None,
    ) -> None:
        args = choose_layout(args, policy_stage(args)).config
        distributed.start(args)
        self.args, self.tokenizer, self.num_total_iters = args, tokenizer, num_total_iters
        policy = Source(actor_model_name_or_path, "ppo.actor", trust_remote_code=args.model.trust_remote_code)
        paths = dict(reward_model_paths or {})
        if stage_reward(args) is not None and critic_model_name_or_path is not None:
            paths["reward"] = critic_model_name_or_path
        check_source(policy, args, scorer=False)
        self.judges = Judges(args, paths, tokenizer, args.ppo.packing)
        self.template, judge = self.judges.template, self.judges.sources.get("reward")
        self.reward_template = self.judges.templates.get("reward")
        if has_critic(args):
            self.check_critic(judge)
        self.policy = policy
        self.device = distributed.device(args)
        self.batches = batches(args, policy_stage(args))
        self.actor = self.training_actor(policy)
        self.critic: Any = self.training_critic(policy, judge) if has_critic(args) else None
        self.ref: Any = self.load_start() if has_reference(args) else None
        self.is_refreshed = False  # whether the reference has become a later policy
        self.judges.load(self.device, {"reward": AdaptersOff(self.critic)} if is_reward_shared(args) else None)
        self.reward_models, self.rewards = self.judges.models, self.judges.total
        self.reward: Any = self.reward_models.get("reward")
        movable = {"critic": self.critic, "ref": self.ref, **self.reward_models} if args.ppo.offload_idle else {}
        self.offloaded = {
            name: OffloadedEngine(engine, frozen=name != "critic")
            for name, engine in movable.items()
            if engine is not None and not is_shared(engine)
        }
        self.samplers: dict[tuple[int, str, bool], tuple[Rollout, Sampler]] = {}
        self.ensure_on_device("critic")

    def load_start(self) -> Any:
        """Return the policy that training starts from: the actor with its adapters off, where they alone are trained, or a
        copy that only reads."""
        args = self.args
        if is_reference_shared(args):
            return AdaptersOff(self.actor)
        return frozen_engine(load_policy(self.policy, args, args.reference_zero, 0.0), args, args.reference_zero)

    @contextmanager
    def start_policy(self) -> Iterator[Any]:
        """Hold the policy that training started from meanwhile: the reference, or, where there is none or it is a later
        policy, a copy that is loaded and freed."""
        if self.ref is not None and not self.is_refreshed:
            yield self.ref
            return
        start = self.load_start()
        try:
            yield start
        finally:
            if not is_shared(start):
                start.destroy()

    def mark_refreshed(self) -> None:
        """Remember that the reference is a later policy, so that what was kept of it counts no more."""
        self.is_refreshed = True
        if "ref" in self.offloaded:
            self.offloaded["ref"].copies = []

    def sampler_of(self, policy: Any, rollout: Rollout) -> Sampler:
        """Return the sampler of a policy (the actor or the reference) for these settings. It is kept for later rollouts; a
        sampler of the same kind with other settings is released first, but for one that takes the likeliest tokens."""
        key = id(policy), rollout.engine, rollout.do_sample
        settings, sampler = self.samplers.get(key, (None, None))
        if sampler is None or settings != rollout:
            if sampler is not None:
                sampler.release()
            sampler = create_sampler(policy, self.tokenizer, rollout, self.args.data.max_prompt_tokens)
            self.samplers[key] = rollout, sampler
        return sampler

    def release_samplers(self, *policies: Any) -> None:
        """Free all that is kept for rollouts of these policies; without policies, for all rollouts."""
        for key in [key for key in self.samplers if not policies or key[0] in map(id, policies)]:
            _, sampler = self.samplers.pop(key)
            sampler.release()

    def scorer_of(self, name: str) -> ModelReward:
        """Return a reward model, by its name among `reward_models`, as a function of the actor's tokens."""
        return self.judges.scorer_of(name)

    def check_critic(self, judge: Source | None) -> None:
        """Refuse a critic with another vocabulary than the actor's, whose tokens it reads, before any model is loaded; and
        one that is to start from a reward model where there is none."""
        start = self.args.ppo.critic
        if start == "actor":
            return
        if start == "reward" and judge is None:
            problem = "there is no reward model that it could start from"
            raise ConfigError("ppo.critic", start, problem, "try ppo.critic=actor")
        if start != "reward":
            check_source(Source(start, "ppo.critic"), self.args, scorer=True)
        same = self.reward_template is None or have_same_vocabulary(self.tokenizer, self.reward_template.tokenizer)
        if start != "reward":
            same = have_same_vocabulary(self.tokenizer, load_tokenizer(start, "ppo.critic"))
        if not same:
            raise ConfigError(
                "ppo.critic",
                start,
                "its tokenizer is not the actor's, so the critic cannot read the actor's tokens",
                "try ppo.critic=actor, or a model trained on the same tokenizer",
            )

    def training_actor(self, policy: Source) -> Any:
        """Return the actor; with a pre-training loss each micro-batch of responses has one of texts beside it."""
        args, ppo = self.args, self.args.ppo
        plan = lent_twice(self.batches) if ppo.ptx_coef > 0 else self.batches
        learning = TrainingSpec(
            ppo, plan, args.zero, args.lora, ppo.learning_rate, ppo.weight_decay, ppo.gradient_checkpointing, samples=True
        )
        model = load_policy(policy, args, args.zero, ppo.dropout)
        engine = training_engine(model, args, learning)
        without_adapter_dropout(engine.module)
        return engine

    def training_critic(self, policy: Source, judge: Source | None) -> Any:
        """Return the critic, from where `ppo.critic` says."""
        args, ppo = self.args, self.args.ppo
        learning = TrainingSpec(
            ppo, self.batches, args.critic_zero, args.critic_lora, ppo.critic_learning_rate, ppo.critic_weight_decay,
            ppo.critic_gradient_checkpointing, "critic_lora",
        )  # fmt: skip
        scorer: ScalarHeadModel
        if ppo.critic == "actor":
            start = replace(policy, key="ppo.critic")
            scorer = scorer_with_new_head(start, args, self.tokenizer, args.critic_zero, ppo.critic_dropout)
        else:
            given = judge if ppo.critic == "reward" and judge is not None else Source(ppo.critic, "ppo.critic")
            scorer = load_scorer(given, args, args.critic_zero, ppo.critic_dropout)
        engine = training_engine(scorer, args, learning)
        without_adapter_dropout(engine.module)
        return engine

    @contextmanager
    def models_on_device(self, *names: str) -> Iterator[None]:
        """Hold the actor on the device meanwhile, and these of `critic`, `ref` and `reward`: with `ppo.offload_idle` the
        others are in host memory. Outside these contexts the critic is on the device, so it can be checkpointed."""
        self.ensure_on_device(*names)
        try:
            yield
        finally:
            self.ensure_on_device("critic")

    def ensure_on_device(self, *names: str) -> None:
        """Put aside what is not named, then get what is; `reward` stands for all reward models, and one that is the critic
        counts as that."""
        needed = {"critic" if name == "reward" and is_shared(self.reward) else name for name in names}
        if "reward" in names:
            needed |= {name for name in self.offloaded if name.startswith("reward")}
        for name in self.offloaded.keys() - needed:
            self.offloaded[name].to_host()
        for name in self.offloaded.keys() & needed:
            self.offloaded[name].to_device()

    def release(self) -> None:
        """Free the engines, and the caches of their rollouts."""
        self.release_samplers()
        self.rewards.close()
        held = self.actor, self.critic, self.ref, *self.reward_models.values()
        release(*(engine for engine in held if engine is not None and not is_shared(engine)))


class AdaptersOff:
    """An engine whose adapters are off while it reads: the model that training started from."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """Return a forward pass without adapters."""
        with self.off():
            return self.engine(*args, **inputs)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Turn the adapters off meanwhile; the engine evaluates, whatever it did before."""
        training, module = self.engine.module.training, self.engine.module
        adapted = module.classifier if isinstance(module, ScalarHeadModel) else module
        self.engine.eval()
        try:
            with adapted.disable_adapter():
                yield
        finally:
            self.engine.train(training)


def is_shared(engine: Any) -> bool:
    """Whether an engine is another one with its adapters off."""
    return isinstance(engine, AdaptersOff)


def lent_twice(plan: Batches) -> Batches:
    """Return the same micro-batches, two for one."""
    return replace(plan, per_rank=2 * plan.per_rank, accumulation=2 * plan.accumulation)


def without_adapter_dropout(model: nn.Module) -> None:
    """Set the adapters' dropout to 0: old and new log-probabilities must come from the same function."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" in name:
            module.p = 0.0
