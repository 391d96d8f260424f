"""TRL's step beside ours: its trainers of RLOO and GRPO (https://github.com/huggingface/trl), on the models and prompts
that ours has, with as many responses per prompt, of the same lengths, and as many updates per rollout.

TRL samples by transformers' generate, pads a rollout to its longest prompt and its longest response, and reads it so; loss,
logging and optimiser are its own. It gets our token ids instead of texts, which would be encoded to other lengths, and our
reward model as a function, in micro-batches. A step is timed from its first call to its last: what `train` sets up is not.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList, PrinterCallback, TrainerCallback

from rlhf.config.derive import policy_stage
from rlhf.config.schema import Config
from rlhf.data.encoded import Encoded
from rlhf.data.tokens import PromptBatch, right_mask, sequence_batch
from rlhf.models.heads import last_token, model_inputs
from rlhf.planner.batches import batches
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.report import describe_speed
from rlhf.runtime.device import busy_seconds, synchronize
from rlhf.stages.bench.generate import EndBySchedule, last_tokens
from rlhf.tracking.throughput import Clock

# What DeepSpeed's launcher and ours say of the processes; accelerate would wrap the model for several by it.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class TRLStep:
    """A step of one of TRL's trainers, timed by phases: a rollout, its scoring, its updates. Raises RuntimeError if its
    responses have other lengths than they are to have."""

    def __init__(self, config: Config, directory: Path, engine: DeepSpeedRLHFEngine, prompts: PromptBatch) -> None:
        self.config, self.engine, self.clock = config, engine, Clock()
        self.micro = batches(config, policy_stage(config)).micro
        lengths = prompts.lengths.tolist()
        self.asked = [row[-length:].tolist() for row, length in zip(prompts.ids, lengths, strict=True)]
        after = last_tokens(prompts, config)
        self.planned = after.clamp(max=config.rollout.max_new_tokens).tolist()
        self.said: list[int] = []
        with one_process():
            import trl
            from datasets import Dataset

            name, tokenizer = config.algorithm.upper(), engine.tokenizer
            policy: Any = AutoModelForCausalLM.from_pretrained(directory / "actor", dtype=torch.float32)
            ends = EndBySchedule(int(tokenizer.eos_token_id), max(lengths), after)
            policy.generate = partial(policy.generate, logits_processor=LogitsProcessorList([ends]))
            settings = getattr(trl, f"{name}Config")(output_dir=str(directory / "trl"), **trainer_settings(config))
            rows = range(0, len(self.asked), prompts.copies)
            self.trainer = timed_trainer(getattr(trl, f"{name}Trainer"), self)(
                model=policy, reward_funcs=self.score, args=settings, processing_class=tokenizer,
                train_dataset=Dataset.from_dict({"prompt": [str(row) for row in rows]}),
            )  # fmt: skip
        self.watch = Stopwatch()
        self.trainer.add_callback(self.watch)
        self.trainer.remove_callback(PrinterCallback)

    def __call__(self) -> dict[str, float]:
        """Run the step; returns its figures. Operations are not told: TRL makes other passes than the plan counts."""
        self.clock = Clock()
        self.watch.began = None
        self.trainer.train()
        if self.said != self.planned:
            raise RuntimeError(f"TRL's responses have {self.said} tokens and not {self.planned}")
        seconds = self.clock.seconds
        seconds["score"] -= seconds["rollout"]
        seconds["train"] = self.watch.seconds - seconds["rollout"] - seconds["score"]
        sizes = list(zip(map(len, self.asked), self.said, strict=True))
        read: Any = SimpleNamespace(lengths=lambda: sizes)
        figures = describe_speed(self.config, read, self.clock)
        figures = {name: value for name, value in figures.items() if not name.endswith(("tflops_per_gpu", "mfu"))}
        return figures | {"time/busy_s": self.watch.busy}

    @torch.no_grad()
    def score(self, prompts: list[str], completion_ids: list[list[int]], **unused: Any) -> list[float]:
        """Score responses by our reward model, as TRL asks a function."""
        texts = [Encoded(self.asked[int(row)], said) for row, said in zip(prompts, completion_ids, strict=True)]
        self.said, scores, reward = [len(said) for said in completion_ids], [], self.engine.reward
        with self.engine.models_on_device("reward"):
            for start in range(0, len(texts), self.micro):
                batch = sequence_batch(texts[start : start + self.micro], 0, self.engine.device)
                mask = right_mask(batch.lengths, batch.ids.size(1))
                scores += last_token(reward(**model_inputs(reward, batch.ids, mask)), batch.lengths).tolist()
        return scores


def trainer_settings(config: Config) -> dict[str, Any]:
    """Return the arguments of a trainer of TRL's that does what the configuration does."""
    ppo, plan = config.ppo, batches(config, policy_stage(config))
    found = {
        "per_device_train_batch_size": plan.micro, "gradient_accumulation_steps": plan.accumulation,
        "generation_batch_size": ppo.rollout_batch_size, "num_generations": config.rollout.samples_per_prompt,
        "num_iterations": ppo.update_epochs, "max_steps": ppo.rollout_batch_size // ppo.batch_size * ppo.update_epochs,
        "max_completion_length": config.rollout.max_new_tokens, "temperature": config.rollout.temperature,
        "beta": ppo.kl_coef, "epsilon": ppo.clip_range, "learning_rate": ppo.learning_rate,
        "weight_decay": ppo.weight_decay, "max_grad_norm": ppo.max_grad_norm, "lr_scheduler_type": "constant",
        "bf16": config.precision.dtype == "bf16", "fp16": config.precision.dtype == "fp16",
        "gradient_checkpointing": ppo.gradient_checkpointing, "use_cpu": config.hardware.device == "cpu",
        "shuffle_dataset": False, "report_to": "none", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "seed": config.seed,
    }  # fmt: skip
    return found | ({"loss_type": "grpo"} if config.algorithm == "grpo" else {})


def timed_trainer(kind: Any, step: TRLStep) -> Any:
    """Return a trainer of TRL's that reads the prompts of a step by the numbers of their rows, and notes its times."""

    class Timed(kind):
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [step.asked[int(row)] for row in prompts], None, {}

        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            with step.clock.phase("rollout"):
                return super()._generate_single_turn(*given, **named)

        def _generate_and_score_completions(self, *given: Any) -> Any:
            with step.clock.phase("score"):
                return super()._generate_and_score_completions(*given)

    return Timed


class Stopwatch(TrainerCallback):
    """Times from the first micro-batch of a training to the end of its last update."""

    def __init__(self) -> None:
        self.began: tuple[float, float] | None = None
        self.seconds = self.busy = 0.0

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        """Begin, at the first update."""
        if self.began is None:
            synchronize()
            self.began = time.perf_counter(), busy_seconds()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        """Note the time that has passed."""
        assert self.began is not None
        synchronize()
        self.seconds, self.busy = time.perf_counter() - self.began[0], busy_seconds() - self.began[1]


@contextmanager
def one_process() -> Iterator[None]:
    """Hide meanwhile that this process is one of a group, which accelerate would serve by DistributedDataParallel."""
    kept = {name: os.environ.pop(name) for name in RANKS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
