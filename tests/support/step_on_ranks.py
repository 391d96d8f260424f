"""A step of PPO on several ranks, which may share one GPU: `step_on_ranks.py ACTOR REWARD KEY=VALUE...`, as each rank of
ranks.run_new_processes. The first rank prints the step's metrics as JSON. NCCL takes one rank per GPU, gloo any number."""

import json
import os
import sys

from support.command import ROOT

sys.path.insert(0, str(ROOT))


def join_by_gloo() -> None:
    """Let DeepSpeed make its groups with gloo, whatever the device."""
    import deepspeed

    join = deepspeed.init_distributed
    deepspeed.init_distributed = lambda *, dist_backend, **options: join(dist_backend="gloo", **options)


def main() -> None:
    actor, reward, *words = sys.argv[1:]
    os.environ["LOCAL_RANK"] = "0"
    from rlhf.cli.prepare import load_config
    from rlhf.models.tokenizer import load_tokenizer
    from rlhf.runtime.distributed import is_main, leave, start
    from support.tiny_models import built

    config = load_config(*words)
    os.environ["DS_ACCELERATOR"] = config.hardware.device  # deepspeed looks for its device when it is imported
    join_by_gloo()
    start(config)
    loader, engine, trainer = built(config, (actor, reward), load_tokenizer(actor, "ppo.actor"))
    trainer.train_rlhf(trainer.generate_experience(next(iter(loader))))
    engine.release()
    if is_main():
        print(json.dumps(trainer.metrics))
    leave()


if __name__ == "__main__":
    main()
