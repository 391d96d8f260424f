"""Evaluating a policy: its answers are kept as they are made, so that an evaluation that is broken off goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import metrics_of
from rlhf.config.derive import Batches, ranks
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import trained_terms
from rlhf.config.schema import Config
from rlhf.config.terminal import plural
from rlhf.data.encoded import Tokenizer
from rlhf.data.records import find_gold
from rlhf.data.row_encoder import hash_ids
from rlhf.data.templates import build_template
from rlhf.data.tokenized import DataSource, open_data
from rlhf.engine.zero import frozen_engine
from rlhf.evaluation import harness
from rlhf.evaluation.answers import Row, add_answers, keep_answers, read_answers
from rlhf.evaluation.heldout import Answer, PolicyEvaluation, Prompt, heldout_prompts
from rlhf.evaluation.prompts import read_prompts
from rlhf.evaluation.summary import summarize_answers
from rlhf.experiment import stopping
from rlhf.experiment.files import parse_json
from rlhf.experiment.stopping import Stopped
from rlhf.experiment.store import write_json
from rlhf.models.load import load_policy
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.rewards.judges import Judges
from rlhf.rollout import create_sampler
from rlhf.runtime.distributed import barrier, device, gather, is_main, start, total, world
from rlhf.stages.context import Context
from rlhf.stages.sft.train import evaluate as measure_perplexity
from rlhf.tracking.progress import Bar, describe_progress

# Seconds between two looks at a file that another rank writes.
POLL_S = 2.0


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Answer the prompts, and measure the answers; returns the means with their standard errors."""
    start(config)
    tokenizer = load_tokenizer(inputs["actor"], "evaluate.policy", None, config.model.trust_remote_code)
    source = DataSource(config)
    prompts, dropped = choose_prompts(config, source, tokenizer)
    with loaded(config, inputs, "actor") as policy:
        metrics = measure_demonstrations(config, source, tokenizer, policy)
        rows = answer_all(config, inputs, context, prompts, policy, tokenizer)
    metrics |= {"data/prompts": float(len(prompts)), "data/prompts_dropped": float(dropped)}
    for name, found in summarize_answers(rows).items():
        metrics[name] = found.mean
        metrics |= {} if found.se is None else {f"{name}_se": found.se}
    context.tracker.log(len(rows), metrics)
    return metrics | (evaluate_on_tasks(config, inputs, context, tokenizer) if config.evaluate.lm_eval else {})


def evaluate_on_tasks(config: Config, inputs: dict[str, str], context: Context, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the metrics of `evaluate.lm_eval`. The first rank alone reads them, with the whole model on its device; the
    others wait for its file, as no collective would for so long."""
    file, keys = context.directory.path / harness.FILE, config.evaluate
    if is_main() and not (config.checkpoint.resume and file.is_file()):
        file.unlink(missing_ok=True)
    barrier()
    if is_main() and not file.is_file():
        whole = replace(config.zero, stage=0, offload_param=False, offload_optimizer=False)
        source = Source(inputs["actor"], "evaluate.policy", trust_remote_code=config.model.trust_remote_code)
        model = load_policy(source, config, whole, 0.0).to(device(config)).eval()
        found = harness.evaluate_tasks(model, tokenizer, keys.lm_eval, keys.batch_size, keys.limit, config.seed)
        context.directory.check_lock()
        write_json(file, found)
    while not file.is_file():
        time.sleep(POLL_S)
    return harness.flatten(parse_json(file.read_text()))


@contextmanager
def loaded(config: Config, inputs: dict[str, str], name: str) -> Iterator[Any]:
    """Hold one of the input models as an engine that only reads, and free it afterwards; None where there is none."""
    if name not in inputs:
        yield None
        return
    key, zero = ("evaluate.policy", config.zero) if name == "actor" else ("evaluate.reference", config.reference_zero)
    source = Source(inputs[name], key, trust_remote_code=config.model.trust_remote_code)
    engine = frozen_engine(load_policy(source, config, zero, 0.0), config, zero)
    try:
        yield engine
    finally:
        engine.destroy()


def choose_prompts(config: Config, source: DataSource, tokenizer: Tokenizer) -> tuple[list[Prompt], int]:
    """Return the prompts of `evaluate.prompts`, the first `evaluate.limit`, and how many were left out as too long. Raises
    ConfigError where none is left."""
    named, limit = config.evaluate.prompts, config.evaluate.limit
    if named == "heldout":
        dropped = sum(open_data(source, tokenizer, "prompts", "heldout").counted.dropped.values())
        return heldout_prompts(source, tokenizer)[:limit], dropped
    template, asked = build_template(config.data, tokenizer), read_prompts(named)[:limit]
    found = [(one, template.encode_prompt(one.prompt)) for one in asked]
    kept = [Prompt(one.prompt, template.show(one.prompt), ids, one.meta) for one, ids in found if ids is not None]
    if not kept:
        problem = f"none of the {plural(len(asked), 'prompt')} of evaluate.prompts={named} fits"
        raise ConfigError("data.max_prompt_tokens", config.data.max_prompt_tokens, problem, "raise it")
    return kept, len(asked) - len(kept)


def measure_demonstrations(config: Config, source: DataSource, tokenizer: Tokenizer, policy: Any) -> dict[str, float]:
    """Return the held-out loss and perplexity of the data's demonstrations; nothing where there is none."""
    items = open_data(source, tokenizer, "demonstrations", "heldout")
    if not len(items):
        return {}
    size = config.evaluate.batch_size
    plan = Batches(ranks(config), size, size, 1)
    metrics = measure_perplexity(policy, items, plan, int(tokenizer.pad_token_id), config.ppo.packing)
    return metrics | {"data/demonstrated": float(len({hash_ids(item.prompt) for item in items}))}


def answer_all(
    config: Config, inputs: dict[str, str], context: Context, prompts: list[Prompt], policy: Any, tokenizer: Tokenizer
) -> list[Row]:
    """Return the answers to all prompts: those that are kept of an earlier attempt, and the others, which are made part by
    part. Raises Stopped between two parts if the stage was asked to stop on any rank."""
    directory, samples = context.directory.path, config.evaluate.samples
    count, part = len(prompts) * samples, config.evaluate.batch_size * world()
    rows = kept_rows(directory, config, count, part)
    context.tracker.resume(None, 0, 0.0)
    judges = Judges(config, inputs, tokenizer, config.ppo.packing)
    judges.load(device(config))
    parts = [list(range(first, min(first + part, count))) for first in range(len(rows), count, part)]
    gold = find_gold(config) if config.evaluate.prompts == "heldout" else None  # that of the data knows no other prompts
    evaluation = PolicyEvaluation(
        config, judges, prompts, config.evaluate.batch_size, config.ppo.packing, gold, samples=samples
    )
    known = metrics_of(context.spec.stage, config)
    progress = Bar("evaluate", count, is_main(), len(rows), context.planned)
    with loaded(config, inputs, "reference") as reference, progress as bar:
        sampler = create_sampler(policy, tokenizer, replace(config.rollout, samples_per_prompt=1))
        for numbers in parts:
            answers = evaluation.answer_prompts(policy, sampler, reference, numbers=numbers)
            made = [describe_answer(config, prompts, n, answer) for n, answer in zip(numbers, answers, strict=True)]
            context.directory.check_lock()
            if is_main():
                add_answers(directory, made)
            rows += made
            context.tracker.status(len(rows), count)
            scores = [row["score"] for row in made if row["score"] is not None]
            shown = {"eval/reward": sum(scores) / len(scores)} if scores else {}
            bar.update(len(rows), describe_progress(shown, ["eval/reward"], known))
            if total(stopping.stop_requested.is_set())[0] and len(rows) < count:
                raise Stopped(f"{len(rows)} of {count} answers are kept")
        sampler.release()
    judges.total.close()
    return rows


def kept_rows(directory: Path, config: Config, count: int, part: int) -> list[Row]:
    """Return the answers of an earlier attempt, whole parts of them alone: so batches are those of an unbroken run."""
    rows: list[Row] = gather(read_answers(directory) if is_main() and config.checkpoint.resume else [])[0]
    kept = rows if len(rows) == count else rows[: len(rows) // part * part]
    if is_main():
        keep_answers(directory, kept)
        if kept:
            print(f"resumed evaluate: {len(kept)} of {count} answers are kept", flush=True)
    return kept


def describe_answer(config: Config, prompts: list[Prompt], number: int, answer: Answer) -> Row:
    """Return an answer as a line of answers.jsonl; without a reward there is no score."""
    index = number // config.evaluate.samples
    row = {"number": number, "index": index, "meta": dict(prompts[index].meta), **asdict(answer)}
    if row["messages"] is None:
        del row["messages"]
    return row if trained_terms(config) else row | {"score": None}
