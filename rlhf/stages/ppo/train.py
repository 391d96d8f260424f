"""Stage 3, PPO: raise the reward model's score while staying near the policy that supervised fine-tuning left."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf import DeepSpeedPPOTrainer, DeepSpeedRLHFEngine
from rlhf.catalog.stage import metrics_of
from rlhf.config.schema import Config, Lora
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.data.records import find_gold
from rlhf.data.tokenized import DataSource
from rlhf.engine.save import save_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.ppo.evaluate import Answer, Evaluation, compare, heldout_prompts
from rlhf.ppo.report import describe_speed
from rlhf.runtime.device import peak_memory_gib
from rlhf.runtime.distributed import is_main, maximum, world
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context, should_evaluate
from rlhf.stages.saver import Saver
from rlhf.tracking.progress import Bar, describe_progress

# What the progress bar shows.
SHOWN = ("reward/mean", "kl/sequence", "length/response", "throughput/samples_per_s", "eval/gold")


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train the actor against the reward model and save it; returns held-out figures."""
    ppo = config.ppo
    source = DataSource(config)
    tokenizer = load_tokenizer(inputs["actor"], "ppo.actor", None, config.model.trust_remote_code)
    loader, prompts = create_prompt_dataloader(config, tokenizer, source), heldout_prompts(source, tokenizer)
    del source
    engine = DeepSpeedRLHFEngine(
        actor_model_name_or_path=inputs["actor"],
        critic_model_name_or_path=inputs.get("reward"),
        tokenizer=tokenizer,
        num_total_iters=len(loader),
        args=config,
        reward_model_paths=inputs,
    )
    trainer = DeepSpeedPPOTrainer(engine=engine, args=config, inspection=context.directory.path / "nonfinite")
    evaluation = Evaluation(engine, config, find_gold(config), prompts)
    saver = Saver(context, {"actor": engine.actor, "critic": engine.critic})
    start = saver.resume()
    if start.step or start.tensors:
        trainer.load_state_dict(start.numbers["trainer"], start.tensors)
        start.tensors.clear()
    context.tracker.status(start.step, len(loader))
    before = [Answer(**kept) for kept in start.numbers.get("before", [])] or answer_with_start(evaluation)
    engine.release_samplers(engine.ref)  # which answers no more prompts
    final: dict[str, float] = start.numbers.get("final", {})

    def numbers() -> dict[str, Any]:
        return {"trainer": trainer.numbers(), "before": [asdict(answer) for answer in before], "final": final}

    known = metrics_of(context.spec.stage)
    with Bar("ppo", len(loader), is_main(), start.step, context.planned) as bar:
        for number, prompt_batch in islice(enumerate(loader, start=1), start.step, None):
            out = trainer.pending or trainer.generate_experience(prompt_batch)
            saver.boundary(number - 1, "rollout", numbers, trainer.tensors)
            trainer.train_rlhf(out)
            metrics = trainer.metrics | describe_speed(config, out, trainer.clock, trainer.update_metrics.text_lengths)
            metrics["memory/peak_gib"] = maximum(peak_memory_gib())
            if should_evaluate(number, len(loader), ppo.eval_every):
                after = evaluation.answers(engine.actor, lambda done, of: bar.say(f"evaluating {done}/{of}"))
                final = compare(before, after)
                metrics |= final
                context.tracker.samples(number, evaluation.samples(before, after, number == len(loader)))
            context.tracker.log(number, metrics)
            context.tracker.status(number, len(loader))
            bar.update(number, describe_progress(final | metrics, SHOWN, known))
            saver.boundary(number, None, numbers, trainer.tensors)

    if trainer.texts is not None:
        final |= trainer.texts.count_cut()
    save(trainer, context, final)
    engine.release()
    return final


def answer_with_start(evaluation: Evaluation) -> list[Answer]:
    """Return the answers of the policy that training starts from, which is the reference."""
    with Bar("eval", -(-len(evaluation.prompts) // world()), is_main()) as bar:
        return evaluation.answers(
            evaluation.engine.ref, lambda done, _: bar.update(done, {"answering held-out prompts": "before PPO"})
        )


def save(trainer: DeepSpeedPPOTrainer, context: Context, final: dict[str, float]) -> None:
    """Save the actor, the critic and, if one is kept, the moving average of the actor."""
    engine, config, average = trainer.engine, trainer.args, trainer.average
    path = context.directory.path
    models: list[tuple[str, Any, Lora, Path]] = [
        ("critic", engine.critic, config.critic_lora, path / "critic"),
        ("ppo", engine.actor, config.lora, context.directory.model),
    ]
    for kind, model, lora, directory in models:
        text = write_model_card(context.spec, kind, model, final)
        context.directory.check_lock()
        save_model(model, engine.tokenizer, lora, directory, text)
    if average is not None:
        text = write_model_card(context.spec, "ema", engine.actor, {})
        context.directory.check_lock()
        save_model(engine.actor, engine.tokenizer, config.lora, path / "ema", text, average.read)
