"""Answering the prompts of a data set by a policy, judging the answers, and writing the records that they make."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.algo.best_of_n import bound_kl, estimate_best_of
from rlhf.algo.errors import mean_with_error
from rlhf.catalog.stage import kind_of, metrics_of
from rlhf.config.directories import ABOUT_DATA
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import reward_terms
from rlhf.config.schema import Config
from rlhf.data.loaders import from_shares, local_share
from rlhf.data.records import find_gold, require_records
from rlhf.data.templates import build_template
from rlhf.data.tokenized import DataSource, Prompts, open_data
from rlhf.data.tokens import PromptRecord, left_mask, prompt_batch, right_mask
from rlhf.engine.zero import frozen_engine, release
from rlhf.experiment.files import read_object
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.store import write_atomic, write_json
from rlhf.models.load import load_policy
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.planner.batches import batches
from rlhf.rewards.judges import Judges
from rlhf.rewards.texts import decode_responses
from rlhf.rollout import create_sampler
from rlhf.rollout.base import Sampler
from rlhf.runtime import distributed
from rlhf.runtime.distributed import is_main, rank, world
from rlhf.runtime.seeds import random_stream, uniforms
from rlhf.stages.best_of_n import count_flops, powers
from rlhf.stages.best_of_n.choose import Answers, NoRecord, choose, make_row, show_row
from rlhf.stages.context import Context, note_data
from rlhf.stages.saver import Saver
from rlhf.tracking.progress import Bar, describe_progress
from rlhf.tracking.throughput import Clock, step_speed

# More responses to a prompt than anybody samples: each has a random stream of its own, whatever n is.
STRIDE = 2**20
# The rows of samples.jsonl.
SAMPLES_KEPT = 32
# The metrics that count what makes no record.
COUNTED = ("data/ties", "data/left_out", "data/unended", "data/unscored")
SHOWN = ("reward/mean", "reward/best", "throughput/samples_per_s")


@dataclass(frozen=True)
class Step:
    """The prompts of a step: some of a part of the data set, by their numbers."""

    part: str
    index: int
    numbers: list[int]


class Answerer:
    """A policy that answers prompts, and what judges its answers."""

    def __init__(self, config: Config, judges: Judges, sampler: Sampler, parts: dict[str, Prompts], size: int) -> None:
        self.config, self.judges, self.sampler, self.parts, self.size = config, judges, sampler, parts, size
        self.gold, self.copies = find_gold(config), config.rollout.samples_per_prompt
        self.device = distributed.device(config)

    @torch.no_grad()
    def answer(self, step: Step) -> tuple[list[Answers], list[int], list[int]]:
        """Return the answers to the prompts of a step, on every rank; and the lengths of this rank's prompts, once for each
        response, and of its responses. All ranks must call this."""
        config, n, pad = self.config, self.copies, int(self.judges.tokenizer.pad_token_id)
        # Equally many prompts on each rank, since ranks work together under ZeRO stage 3; what is too many is dropped.
        chosen = step.numbers
        own = local_share([chosen[i % len(chosen)] for i in range(len(chosen) + -len(chosen) % world())], rank(), world())
        prompts = self.parts[step.part]
        samples = [number * STRIDE + copy for number in own for copy in range(n)]
        batch = prompt_batch([prompts[number] for number in own], samples, pad, self.device, n)
        random = uniforms(config.seed, f"best of n, {step.part}", 0, samples, config.rollout.max_new_tokens)
        self.sampler.sync()
        responses = self.sampler.generate(batch, torch.from_numpy(random).to(self.device))
        texts = decode_responses(responses.tokens, responses.lengths, self.judges.template)
        records = [PromptRecord(*prompts.record(number)) for number in own for _ in range(n)]
        actions = right_mask(responses.lengths, responses.tokens.size(1))
        ids = torch.cat([batch.ids, responses.tokens], 1)  # [B, Q + R]
        mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], 1)
        scores, gold = list[float | None](), list[float | None]()
        for start in range(0, len(samples), self.size):
            rows = slice(start, start + self.size)
            part = batch.rows(torch.arange(len(samples), device=self.device)[rows])
            sequences = ids[rows], mask[rows], actions.size(1), responses.ended[rows]
            judged = self.judges.judge(part, records[rows], sequences, texts[rows], self.gold)
            applies = [any(raw[i] is not None for raw in judged.raw.values()) for i in range(len(judged.totals))]
            totals = [total if known else None for total, known in zip(judged.totals, applies, strict=True)]
            scores += judged.gold if config.best_of_n.judge == "gold" else totals
            gold += judged.gold
        require_finite([*scores, *gold])
        lengths, ended = responses.lengths.tolist(), responses.ended.tolist()
        groups = [(number, slice(index * n, (index + 1) * n)) for index, number in enumerate(own)]
        found = [Answers(number, texts[of], scores[of], gold[of], ended[of], lengths[of]) for number, of in groups]
        return from_shares(found, len(chosen)), batch.lengths.tolist(), lengths


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Answer all prompts and write the records; returns the metrics of the records, and of held-out answers."""
    distributed.start(config)
    source = DataSource(config)
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(inputs["actor"], "best_of_n.policy", None, trusted)
    parts: dict[str, Prompts] = {part: open_data(source, tokenizer, "prompts", part) for part in ("train", "heldout")}
    require_records(parts["heldout"], "prompts", config)
    note_data(context, parts["train"], parts["heldout"])
    del source
    plan = batches(config, "best_of_n")
    policy = load_policy(Source(inputs["actor"], "best_of_n.policy", trust_remote_code=trusted), config, config.zero, 0.0)
    engine = frozen_engine(policy, config, config.zero)
    judges = Judges(config, inputs, tokenizer, "length")
    judges.load(distributed.device(config))
    sampler = create_sampler(engine, tokenizer, config.rollout)
    answerer = Answerer(config, judges, sampler, parts, plan.micro)
    answer_all(answerer, context)
    sampler.release()
    judges.total.close()
    release(engine)
    for model in judges.models.values():
        release(model)
    final = write_records(config, context, parts, build_template(config.data, tokenizer).show) if is_main() else {}
    return dict(distributed.gather(final)[0]) | {"eval/kl_bound": bound_kl(config.rollout.samples_per_prompt)}


def plan_steps(config: Config, parts: dict[str, Prompts]) -> list[Step]:
    """Return the steps: all training prompts that are asked for, then all held-out ones."""
    size, most, found = config.best_of_n.batch_size // config.rollout.samples_per_prompt, config.best_of_n.max_prompts, []
    for part, prompts in parts.items():
        count = len(prompts) if most is None or part == "heldout" else min(most, len(prompts))
        numbers = list(range(count))
        found += [Step(part, index, numbers[start : start + size]) for index, start in enumerate(range(0, count, size))]
    return found


def answer_all(answerer: Answerer, context: Context) -> None:
    """Answer the prompts step by step, each in a file of its own; what is whole already is not answered again."""
    config, saver = answerer.config, Saver(context, {})
    steps, known = plan_steps(config, answerer.parts), metrics_of(context.spec.stage)
    start = saver.resume().step
    context.tracker.status(start, len(steps))
    with Bar("best of n", len(steps), is_main(), start, context.planned) as bar:
        for number, step in islice(enumerate(steps, start=1), start, None):
            clock = Clock()
            with clock.phase("step"):
                answers, prompts, responses = answerer.answer(step)
            if is_main():
                context.directory.check_lock()
                write_json(answers_file(context, step), {"answers": [asdict(found) for found in answers]})
            lengths = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
            flops = sum(count_flops(config, prompts, responses).values())
            metrics = describe_answers(answers) | step_speed(config, lengths, flops, clock)
            context.tracker.log(number, metrics)
            context.tracker.status(number, len(steps))
            bar.update(number, describe_progress(metrics, SHOWN, known))
            saver.boundary(number, None, dict)


def answers_file(context: Context, step: Step) -> Path:
    """Return the file of the answers of a step."""
    return context.directory.path / "answers" / f"{step.part}-{step.index:06}.json"


def read_answers(context: Context, steps: Sequence[Step]) -> Iterator[Answers]:
    """Yield the answers of steps, in their order. Raises RuntimeError for a step without."""
    for step in steps:
        file = answers_file(context, step)
        found = read_object(file)
        if found is None:
            raise RuntimeError(f"{file} is gone; type the command again with checkpoint.resume=false")
        yield from (Answers(**entry) for entry in found["answers"])


def describe_answers(answers: Sequence[Answers]) -> dict[str, float]:
    """Return the metrics of the answers of a step."""
    scores = [score for found in answers for score in found.scores if score is not None]
    best = [max(map(found.score, found.candidates)) for found in answers if found.candidates]
    lengths = [length for found in answers for length in found.lengths]
    ended = [done for found in answers for done in found.ended]
    return {
        **({"reward/mean": sum(scores) / len(scores)} if scores else {}),
        **({"reward/best": sum(best) / len(best)} if best else {}),
        "length/response": sum(lengths) / len(lengths),
        "length/ended": sum(ended) / len(ended),
    }


def write_records(config: Config, context: Context, parts: dict[str, Prompts], show: Any) -> dict[str, float]:
    """Write the data set, and samples of it; returns the final metrics. Raises ConfigError where no record is made."""
    steps, made = plan_steps(config, parts), config.best_of_n
    counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    heldout: list[Answers] = []
    for part, prompts in parts.items():
        rows: list[str] = []
        for answers in read_answers(context, [step for step in steps if step.part == part]):
            prompt, meta = prompts.record(answers.number)
            if part == "heldout":
                heldout.append(answers)
            else:
                counts["data/unended"] += answers.ended.count(False)
                counts["data/unscored"] += answers.scores.count(None)
            random = random_stream(config.seed, f"rival, {part}", answers.number)
            try:
                rows.append(json.dumps(make_row(prompt, meta, answers, *choose(answers, made, random)), ensure_ascii=False))
            except NoRecord as reason:
                counts[str(reason)] += part == "train"
        if not rows:
            problem = f"no {'training' if part == 'train' else 'held-out'} prompt has made a record ({tell(counts)})"
            fix = "raise it, sample more responses (rollout.samples_per_prompt), or take a policy that ends its responses"
            raise ConfigError("rollout.max_new_tokens", config.rollout.max_new_tokens, problem, fix)
        if part == "train":
            counts["data/records"] = len(rows)
        context.directory.check_lock()
        write_atomic(context.directory.data_set / f"{part}.jsonl", "\n".join(rows) + "\n")
    write_json(context.directory.data_set / ABOUT_DATA, describe_origin(config, context))
    shown = [found for found in heldout if len(found.candidates) > 1][:SAMPLES_KEPT]
    keys = [side.key for side in kind_of(context.spec.stage).sides]
    context.tracker.samples(len(steps), [show_row(show(parts["heldout"].record(a.number)[0]), a, keys) for a in shown])
    return {name: float(count) for name, count in counts.items()} | measure(heldout, powers(config))


def tell(counts: Mapping[str, int]) -> str:
    """Return in words what made no record."""
    return ", ".join(f"{number} {name.partition('/')[2].replace('_', ' ')}" for name, number in counts.items())


def describe_origin(config: Config, context: Context) -> dict[str, Any]:
    """Return how a data set came to be: the stage, the policy and the rewards by what identifies them, and the seed."""
    inputs = context.spec.inputs
    return {
        "stage": context.spec.stage,
        "fingerprint": context.spec.fingerprint,
        "models": {name: {"path": path, "identity": content_id(path)} for name, path in sorted(inputs.items())},
        "rewards": {name: asdict(term) for name, term in reward_terms(config).items()},
        "gold": config.gold,
        "functions": context.spec.files,
        "best_of_n": asdict(config.best_of_n),
        "rollout": asdict(config.rollout),
        "seed": config.seed,
    }


def measure(answers: Sequence[Answers], powers: Sequence[int]) -> dict[str, float]:
    """Return what the best of n held-out responses is worth, for each n, and what all of them are."""
    n = len(answers[0].responses)
    scores = [[found.score(index) for index in range(n)] for found in answers]
    values = {"reward": [[0.0 if score is None else score for score in found.scores] for found in answers]}
    gold = [[value for value in found.gold if value is not None] for found in answers]
    if all(len(found) == n for found in gold):
        values["gold"] = gold
    metrics: dict[str, float] = {}
    for name, columns in values.items():
        for count in dict.fromkeys([*powers, n]):
            each = [estimate_best_of(*pair, count) for pair in zip(scores, columns, strict=True)]
            if count in powers:
                metrics |= mean_with_error(f"eval/{name}_best_of_{count}", each)
            if count == n:
                metrics |= mean_with_error(f"eval/{name}", each)
    if "gold" in values:
        everything = np.array(gold)
        metrics |= mean_with_error("eval/gold_sft", everything.mean(axis=1).tolist())
        metrics["eval/gold_sft_std"] = float(everything.std(ddof=min(1, everything.size - 1)))
    return metrics


def require_finite(scores: Sequence[float | None]) -> None:
    """Raise FloatingPointError for a score that is not finite: nothing can be chosen by it."""
    if any(score is not None and not math.isfinite(score) for score in scores):
        raise FloatingPointError("a reward gives a score that is not finite")
