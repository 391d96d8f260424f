"""`python -m rlhf data`: what the models will read, counted and shown before anything starts."""

import json
from pathlib import Path

import pytest

ROWS = [
    {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "source": "me"},
    {"prompt": "Why?", "chosen": "So it is.", "rejected": "No.", "source": "me"},
    {"prompt": "How?", "chosen": "So.", "rejected": "So."},
    {"prompt": None, "chosen": "So.", "rejected": "No."},
    {"prompt": "Who " * 40, "chosen": "I.", "rejected": "You."},
    {"prompt": "Where?", "chosen": "Here, and there, and everywhere else.", "rejected": "No."},
]
SIZES = (
    "sft.batch_size=2", "reward.batch_size=2", "ppo.rollout_batch_size=2", "ppo.batch_size=2", "sft.warmup_steps=0",
    "reward.warmup_steps=0", "ppo.warmup_steps=0", "sft.epochs=1", "reward.epochs=1", "ppo.epochs=1",
    "data.max_prompt_tokens=24", "data.max_response_tokens=6",
)  # fmt: skip


@pytest.fixture
def show(cli, tmp_path):
    """`show(*arguments)`: exit code, output and errors of the verb on a file of ROWS, or of a run without one."""

    def call(*arguments, rows=ROWS, heldout=ROWS[:1], verb="data"):
        for name, content in (("train", rows), ("heldout", heldout)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        files = "data=files", "data.files.train=train.jsonl", "data.files.heldout=heldout.jsonl"
        return cli(*([verb] if verb else []), *files, *SIZES, *arguments)

    return call


def test_scripts_get_counts_and_samples(show):
    code, out, errors = show("--json", "--samples", "2")
    found = json.loads(out)
    assert code == 0, errors
    assert list(found) == ["stages", "overlap", "warnings", "samples"] and found["overlap"] == 1
    null = {"rows without a prompt": 1}
    kept = {stage: (counts["read"], counts["kept"], counts["dropped"]) for stage, counts in found["stages"].items()}
    assert kept == {
        "sft": (6, 4, null | {"too long": 1}),
        "reward": (6, 3, null | {"chosen = rejected": 1, "too long": 1}),
        "ppo": (6, 3, null | {"duplicate": 1, "too long": 1}),
    }
    sft = found["stages"]["sft"]
    assert set(sft) == {"read", "kept", "dropped", "cut", "tokens", "steps"} and (sft["cut"], sft["steps"]) == (1, 2)
    assert set(sft["tokens"]) == {"prompt", "response"} and sft["tokens"]["response"]["max"] == 6
    assert all(set(lengths) == {"median", "p95", "max"} for lengths in sft["tokens"].values())
    samples = found["samples"]
    sides = [(sample["stage"], sample["side"]) for sample in samples]
    pair = [("reward", "chosen"), ("reward", "rejected")]
    assert sides == [("sft", "response")] * 2 + pair * 2 + [("ppo", None)] * 2
    first = samples[0]
    assert set(first) == {"stage", "side", "prompt", "response", "ids", "loss", "meta"}
    assert (first["prompt"], first["response"]) == ("Human: Why?\n\nAssistant:", " So.<|endoftext|>")
    assert first["meta"] == {"source": "me"} and len(first["ids"]) == len(first["loss"])
    answer = sum(first["loss"])
    assert first["loss"] == [0] * (len(first["ids"]) - answer) + [1] * answer and 1 < answer < len(first["ids"])
    assert not any(samples[-1]["loss"]) and samples[-1]["response"] == ""
    assert samples[1]["response"] == " So it is.<|endoftext|>"  # in the file's order


def test_people_get_tables_and_the_text_of_the_model(show):
    code, out, _ = show("--samples=1")
    assert code == 0 and "\x1b" not in out
    row = next(line for line in out.splitlines() if line.startswith("reward"))
    assert row.split()[:7] == ["reward", "training", "6", "3", "3", "1", "1"]
    assert "reward, training, left out: 1 rows without a prompt, 1 chosen = rejected, 1 too long" in out
    assert "data.files.heldout=heldout.jsonl: 1 prompt of it stand" in out
    assert "sft, response" in out and "Assistant: So.<|endoftext|>" in out and "source: me" in out
    assert show("--samples", "0")[1].count("<|endoftext|>") == 0
    assert max(map(len, out.splitlines())) <= 160


@pytest.mark.parametrize("verb", ["data", None])
def test_what_a_run_would_refuse_is_refused_before_anything_starts(show, tmp_path, verb):
    code, _, errors = show("sft.batch_size=8", rows=ROWS + ROWS[4:5] * 6, verb=verb)
    assert code == 2 and "sft.batch_size=8: a batch takes 8 demonstrations, and train.jsonl has 4 that fit" in errors
    assert "7 too long" in errors and "give at most 4" in errors
    code, _, errors = show(heldout=ROWS[4:5], verb=verb)
    assert code == 2 and errors.count("data.files.heldout=heldout.jsonl: it has no ") == 3, errors
    assert not (tmp_path / "outputs" / "stages").exists()


def test_all_points_of_a_sweep_are_shown(show):
    code, out, errors = show("-m", "data.truncation=left,drop", "--json", "--samples", "0")
    assert code == 0, errors
    points = json.loads(out)["points"]
    assert {name: point["stages"]["sft"]["kept"] for name, point in points.items()} == {
        "data.truncation=left": 5,
        "data.truncation=drop": 4,
    }


def test_a_run_uses_what_was_encoded(show, tmp_path):
    assert show()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "outputs" / "data").glob("*/info.json")}
    assert len(before) == 7 and show()[0] == 0  # two parts of three stages, and the tokenizer
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_bad_input_is_told_in_a_line(show):
    for words, told in (
        (("--samples", "many"), "--samples=many"),
        (("--cfg", "job"), "--cfg"),
        (("sft.epochs=x",), "sft.epochs=x"),
    ):
        code, _, errors = show(*words)
        assert code == 2 and told in errors and "Traceback" not in errors
    assert show("--help")[0] == 0


@pytest.mark.parametrize(("loss_on", "trained"), [("completion", 1), ("assistant", 2)])
def test_a_conversation_is_shown_with_what_is_trained_on(cli, tmp_path, loss_on, trained):
    said = (("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", " I."))
    row = {"messages": [{"role": role, "content": text} for role, text in said]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    files = "data=files", "data.files.train=a.jsonl", "data.files.heldout=a.jsonl", "stage=sft", "data.template=chat"
    sizes = *SIZES, "sft.batch_size=1", "data.max_response_tokens=8", "data.max_prompt_tokens=40"
    code, out, errors = cli("data", *files, *sizes, f"sft.loss_on={loss_on}", "--json")
    assert code == 0, errors
    (sample,) = json.loads(out)["samples"]
    assert sample["prompt"] == "<|user|>Hi<|end|><|assistant|>Hello.<|end|><|user|>Who?<|end|><|assistant|>"
    assert sample["response"] == " I.<|end|>"
    runs = "".join(map(str, sample["loss"])).split("0")
    assert len([run for run in runs if run]) == trained and sample["loss"][-1] == 1
