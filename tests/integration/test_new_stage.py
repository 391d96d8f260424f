"""A stage of somebody else's is one file of Python and one of YAML: it is planned, run, resumed, shown and reported without
a change to this package, with keys and metrics of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import ROOT

# A second pass over the demonstrations, from the fine-tuned model on.
PYTHON = '''
"""Go on from the fine-tuned model."""

import os
import signal
from dataclasses import dataclass

from rlhf.catalog.metric import TRAINING, Metric
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Card, Input, Records, StageKind
from rlhf.config.metadata import Range, key
from rlhf.config.schema import Training
from rlhf.planner.flops import training_flops


@dataclass
class Relearn(Training):
    """The keys of the second pass."""

    dropout: float = key(Range(0, 0.5))
    order: str = key(choices=("same", "reversed"))
    note: str | None = key(effect="name")


def phase_flops(config, answers):
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    count = config.relearn.batch_size
    return {"train": training_flops(config.model, [longest] * count, longest * count, config.lora)}


KIND = StageKind(
    name="lab.relearn",
    run="lab.relearn:run",
    result_keys=("seed", "precision", "lora", "data", "relearn", "zero"),
    schema=Relearn,
    section="relearn",
    metrics=(
        Metric("train/loss", "nats", "training loss of the second pass", "second loss", axis="nats per token"),
        *TRAINING,
        Metric("eval/loss", "nats", "held-out loss", "loss held out", final=True, better=-1, error=True),
        Metric("eval/perplexity", "", "held-out perplexity", "relearnt perplexity", final=True, error=True),
        Metric("eval/perplexity_initial", "", "held-out perplexity of the fine-tuned model", error=True),
    ),
    headline=("eval/loss", "train/loss"),
    inputs=(Input("actor", "ppo.actor", "sft"),),
    model_keys=("model",),
    trained=("zero",),
    roles=lambda config: [Role(config.model, config.zero, config.lora)],
    records=lambda config, counts: Records("demonstrations", "demonstrations", counts.demonstrations),
    phase_flops=phase_flops,
    cards={"model": Card("a language model that was taught twice")},
)


def run(config, inputs, context):
    from rlhf.data.tokenized import DataSource, open_data
    from rlhf.data.tokens import sequence_batch
    from rlhf.engine.save import save_model
    from rlhf.engine.zero import TrainingSpec, release, training_engine
    from rlhf.models.load import load_policy
    from rlhf.models.source import Source
    from rlhf.models.tokenizer import load_tokenizer
    from rlhf.stages import supervised
    from rlhf.stages.card import write_model_card
    from rlhf.planner.batches import batches
    from rlhf.stages.sft import work
    from rlhf.stages.sft.train import evaluate, sequence_lengths, train_step

    own, source = config.relearn, DataSource(config)
    tokenizer = load_tokenizer(inputs["actor"], "ppo.actor")
    train, heldout = (open_data(source, tokenizer, "demonstrations", part) for part in ("train", "heldout"))
    plan, pad = batches(config, context.spec.stage), tokenizer.pad_token_id
    policy = load_policy(Source(inputs["actor"], "ppo.actor"), config, config.zero, own.dropout)
    learning = TrainingSpec(own, plan, config.zero, config.lora, own.learning_rate, own.weight_decay, False)
    engine = training_engine(policy, config, learning)
    steps = []

    def step(share):
        steps.append(share)
        if os.environ.get("DIE_AT") == str(len(steps)):
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(engine, share, plan, config, pad), sequence_lengths(share)

    learner = supervised.Learner(
        "relearn", own, config.lora, plan, engine, train,
        step=step,
        flops=lambda lengths: work(config, lengths),
        sizes=train.sizes,
        batch=lambda share: sequence_batch(share, pad),
        evaluate=lambda: evaluate(engine, heldout, plan, pad),
        judged_by="eval/perplexity",
        shown=("train/loss",),
    )
    final = supervised.train(config, context, learner)
    text = write_model_card(context.spec, "model", engine, final)
    save_model(engine, tokenizer, config.lora, context.directory.model, text)
    release(engine)
    return final
'''
KEYS = (
    "epochs", "max_steps", "batch_size", "micro_batch_size", "learning_rate", "schedule", "warmup_steps", "weight_decay",
    "betas", "eps", "max_grad_norm", "packing", "max_nonfinite", "eval_every", "dropout",
)  # fmt: skip
YAML = """# @package _global_
stages: [sft, lab.relearn]
relearn:
  gradient_checkpointing: false
  order: same  # in which the demonstrations are read again
  note: null  # for people
""" + "".join(f"  {key}: ${{sft.{key}}}\n" for key in KEYS)
SMALL = (
    "--config-dir=conf", "stage=relearn", "data.demo.demonstrations=60", "data.demo.rounds=1",
    "data.demo.heldout_prompts=8", "sft.max_steps=4", "sft.batch_size=16", "checkpoint.every_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("new")
    (found / "lab").mkdir()
    (found / "lab" / "relearn.py").write_text(PYTHON)
    (found / "conf" / "stage").mkdir(parents=True)
    (found / "conf" / "stage" / "relearn.yaml").write_text(YAML)
    return found


@pytest.fixture(scope="module")
def command(place):
    def call(*arguments, **environment):
        """What the command line says, and its exit code."""
        known = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        known |= {"HOME": str(place), "PYTHONPATH": f"{place}:{ROOT}", "COLUMNS": "200", **environment}
        words = [sys.executable, "-m", "rlhf", *arguments]
        done = subprocess.run(words, cwd=place, env=known, capture_output=True, text=True, timeout=200, check=False)
        return done.returncode, done.stdout + done.stderr

    return call


def directory(place) -> Path:
    (found,) = (place / "outputs" / "stages").glob("lab.relearn-*")
    return found


def test_a_plan_counts_its_steps_and_its_work(command, place):
    code, said = command(*SMALL, "dry_run=true")
    assert code == 0, said
    sft, own = (next(line for line in said.splitlines() if f" {name}-" in line) for name in ("sft", "lab.relearn"))
    assert sft.split()[-2:] == own.split()[-2:]  # as many steps of the same work
    assert "1 sft, 1 lab.relearn to run" in said
    assert not (place / "outputs" / "stages").exists()


def test_a_stage_that_cannot_be_found_is_refused_in_a_line(command):
    code, said = command("stages=[sft,lab.unlearn]", "dry_run=true")
    assert code == 2 and "there is no such choice" in said and "Traceback" not in said, said


def test_its_keys_are_checked_before_anything_starts(command, place):
    wrong = {
        "relearn.dropout=0.7": "relearn.dropout=0.7: out of range; give a number at least 0 and at most 0.5",
        "relearn.order=random": "relearn.order=random: there is no such choice; choose one of same, reversed",
        "relearn.epochs=many": "relearn.epochs=many: wrong type; give a whole number",
        "relearn.gradient_checkpointing=auto": "relearn.gradient_checkpointing=auto: there is no such choice",
        "+relearn.passes=2": "relearn.passes=2: there is no such key",
        "relearn.batch_size=15": "relearn.micro_batch_size",
    }
    for word, line in wrong.items():
        code, said = command(*SMALL, word, "relearn.micro_batch_size=2", "dry_run=true")
        assert code == 2 and line in said and "Traceback" not in said, said
    code, said = command("relearn.order=same", "dry_run=true")  # the whole pipeline has no such stage
    assert code == 2 and "relearn.order" in said, said


def test_it_goes_on_where_it_was_killed(command, place):
    code, said = command(*SMALL, DIE_AT="3")
    assert code == -signal.SIGKILL, said
    assert [found.name for found in sorted(directory(place).glob("checkpoints/step-*"))][-1] == "step-000002"
    code, said = command(*SMALL)
    assert code == 0 and "relearnt perplexity" in said and "loss held out, nats" in said, said
    lines = [json.loads(line) for line in (directory(place) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    result = json.loads((directory(place) / "result.json").read_text())
    assert result["stage"] == "lab.relearn" and result["metrics"]["eval/perplexity"] > 1
    assert "# A language model that was taught twice" in (directory(place) / "model" / "README.md").read_text()


def test_another_value_of_a_key_that_it_reads_is_another_stage(command):
    for word in ("relearn.learning_rate=0.01", "relearn.order=reversed"):
        code, said = command(*SMALL, word, "dry_run=true")
        assert code == 0 and "1 lab.relearn to run, 1 stage done before" in said, said
    for word in ("ppo.gamma=0.9", "relearn.note=again", "relearn.max_nonfinite=7"):
        code, said = command(*SMALL, word, "dry_run=true")
        assert code == 0 and "nothing to run" in said, said


def test_status_and_report_show_it(command, place):
    """With labels and units of its own, for other people too, who do not have its module."""
    code, said = command("status", "outputs", PYTHONPATH=str(ROOT))
    (row,) = [line for line in said.splitlines() if line.startswith(directory(place).name)]
    assert code == 0 and re.search(r"loss held out \d\S* nats", row), said
    code, said = command("report", "outputs/runs/latest", PYTHONPATH=str(ROOT))
    assert code == 0 and "relearnt perplexity" in said and "loss held out, nats" in said, said
    (report,) = (place / "outputs").rglob("report.html")
    page = report.read_text()
    assert all(text in page for text in (directory(place).name, "Second loss", "nats per token", "loss held out, nats"))
    (table,) = (place / "outputs").rglob("table.json")
    rows = {(row["stage"], row["metric"]): row["unit"] for row in json.loads(table.read_text())}
    assert rows["lab.relearn", "eval/loss"] == "nats" and ("lab.relearn", "eval/perplexity") in rows
