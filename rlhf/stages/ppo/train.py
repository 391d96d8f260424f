"""Stage 3, PPO: raise the reward model's score while staying near the policy that supervised fine-tuning left."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf import DeepSpeedPPOTrainer, DeepSpeedRLHFEngine
from rlhf.catalog.stage import kind_of, metrics_of
from rlhf.config.schema import Config, Lora
from rlhf.data.loaders import create_prompt_dataloader
from rlhf.data.records import find_gold
from rlhf.data.tokenized import DataSource, open_data
from rlhf.engine.save import save_model
from rlhf.evaluation.heldout import Answer, align, compare, heldout_prompts
from rlhf.models.tokenizer import load_tokenizer
from rlhf.ppo.evaluate import Evaluation
from rlhf.ppo.report import describe_speed
from rlhf.runtime.device import peak_memory_gib
from rlhf.runtime.distributed import is_main, maximum, world
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context, note_data, should_evaluate
from rlhf.stages.saver import Saver
from rlhf.stages.start_answers import give_once
from rlhf.tracking.progress import Bar, describe_progress

# What the progress bar shows.
SHOWN = ("reward/mean", "kl/sequence", "length/response", "throughput/samples_per_s", "eval/gold")


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train the actor against the reward model and save it; returns held-out figures."""
    ppo = config.ppo
    source = DataSource(config)
    tokenizer = load_tokenizer(inputs["actor"], "ppo.actor", None, config.model.trust_remote_code)
    loader, prompts = create_prompt_dataloader(config, tokenizer, source), heldout_prompts(source, tokenizer)
    train, heldout = (open_data(source, tokenizer, "prompts", part) for part in ("train", "heldout"))
    note_data(context, train, heldout)
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
    learners = {"actor": engine.actor} | ({} if engine.critic is None else {"critic": engine.critic})
    saver = Saver(context, learners)
    start = saver.resume()
    if start.step or start.tensors:
        trainer.load_state_dict(start.numbers["trainer"], start.tensors)
        start.tensors.clear()
    context.tracker.status(start.step, len(loader))
    before = [Answer(**kept) for kept in start.numbers.get("before", [])]
    before = before or give_once(context.spec, heldout.path.name, lambda: answer_with_start(evaluation))
    if engine.ref is not None:
        engine.release_samplers(engine.ref)  # which answers no more prompts
    final: dict[str, float] = start.numbers.get("final", {})

    def numbers() -> dict[str, Any]:
        return {"trainer": trainer.numbers(), "before": [asdict(answer) for answer in before], "final": final}

    known, sides = metrics_of(context.spec.stage), kind_of(context.spec.stage).sides
    with Bar("ppo", len(loader), is_main(), start.step, context.planned) as bar:
        for number, prompt_batch in islice(enumerate(loader, start=1), start.step, None):
            save_draw = partial(save_draws, saver, trainer, number - 1, numbers)
            out = trainer.pending or trainer.generate_experience(prompt_batch, save_draw)
            saver.boundary(number - 1, "rollout", numbers, trainer.tensors)
            trainer.train_rlhf(out)
            worked = trainer.update_metrics.text_lengths, trainer.draws.lengths, trainer.update_metrics.passes(ppo)
            metrics = trainer.metrics | describe_speed(config, out, trainer.clock, *worked)
            metrics["memory/peak_gib"] = maximum(peak_memory_gib())
            if should_evaluate(number, len(loader), ppo.eval_every):
                after = evaluation.answers(engine.actor, lambda done, of: bar.say(f"evaluating {done}/{of}"))
                final = compare(before, after)
                metrics |= final
                context.tracker.samples(number, align(before, after, sides, number == len(loader)))
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
        return evaluation.answers_before(lambda done, _: bar.update(done, {"answering held-out prompts": "before PPO"}))


def save_draws(saver: Saver, trainer: DeepSpeedPPOTrainer, step: int, numbers: Callable[[], dict[str, Any]]) -> None:
    """Save a rollout that is not full yet, if it is time to."""
    saver.boundary(step, f"draw-{trainer.draws.count:06}", numbers, trainer.tensors)


def save(trainer: DeepSpeedPPOTrainer, context: Context, final: dict[str, float]) -> None:
    """Save the actor and, as far as there are any, the critic and the moving average of the actor."""
    engine, config, average = trainer.engine, trainer.args, trainer.average
    path = context.directory.path
    models: list[tuple[str, Any, Lora, Path]] = [("ppo", engine.actor, config.lora, context.directory.model)]
    if engine.critic is not None:
        models.insert(0, ("critic", engine.critic, config.critic_lora, path / "critic"))
    for kind, model, lora, directory in models:
        text = write_model_card(context, kind, model, engine.tokenizer, final)
        context.directory.check_lock()
        save_model(model, engine.tokenizer, lora, directory, text)
    if average is not None:
        text = write_model_card(context, "ema", engine.actor, engine.tokenizer, {})
        context.directory.check_lock()
        save_model(engine.actor, engine.tokenizer, config.lora, path / "ema", text, average.read)
