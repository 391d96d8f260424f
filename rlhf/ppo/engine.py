"""The four models of step 3: actor and critic, which learn, reference and reward model, which do not."""

from torch import nn

from rlhf.config.derive import batches
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.data.tokens import Tokenizer
from rlhf.engine import distributed
from rlhf.engine.zero import frozen_engine, release, training_engine
from rlhf.models.heads import BIAS
from rlhf.models.load import Source, load_policy, load_scorer
from rlhf.models.tokenizer import load_tokenizer, same_vocabulary


class DeepSpeedRLHFEngine:
    """Actor, reference, critic and reward model as DeepSpeed engines.

    Args:
        actor_model_name_or_path: directory or hub id of the causal language model that PPO starts from; the reference is
            a frozen copy.
        critic_model_name_or_path: directory or hub id of a sequence classifier with one label: the reward model, and
            where the critic starts.
        tokenizer: the actor's; the critic must share it.
        num_total_iters: rollouts to come; learning rates fall to their end over them.
        args: the configuration.

    Raises:
        ConfigError: a model cannot be loaded, or the critic's tokenizer is another one.
    """

    def __init__(
        self,
        actor_model_name_or_path: str,
        critic_model_name_or_path: str,
        tokenizer: Tokenizer,
        num_total_iters: int,
        args: Config,
    ) -> None:
        distributed.start(args)
        if not same_vocabulary(tokenizer, load_tokenizer(critic_model_name_or_path, "ppo.reward")):
            raise ConfigError(
                "ppo.reward",
                critic_model_name_or_path,
                "its tokenizer is not the actor's, so the critic cannot read the actor's tokens",
                "train the reward model on the same tokenizer",
            )
        self.args, self.tokenizer, self.num_total_iters = args, tokenizer, num_total_iters
        self.device = distributed.device(args)
        self.batches = batches(args, "ppo")
        ppo = args.ppo
        policy = Source(actor_model_name_or_path, "ppo.actor")
        judge = Source(critic_model_name_or_path, "ppo.reward")
        actor = load_policy(policy, args, 0.0)
        self.actor = training_engine(actor, args, ppo, self.batches, ppo.weight_decay)
        self.ref = frozen_engine(load_policy(policy, args, 0.0), args)
        scorer = load_scorer(judge, args, 0.0)
        self.reward_bias = float(getattr(scorer.config, BIAS, 0.0))
        self.critic = training_engine(scorer, args, ppo, self.batches, ppo.weight_decay)
        for engine in (self.actor, self.critic):
            without_dropout(engine.module)  # adapters bring their own
        self.reward = frozen_engine(load_scorer(judge, args, 0.0), args)

    def release(self) -> None:
        """Free the four engines."""
        release(self.actor, self.ref, self.critic, self.reward)


def without_dropout(model: nn.Module) -> None:
    """Set every dropout layer to 0: old and new log-probabilities must come from the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
