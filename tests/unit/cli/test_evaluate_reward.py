"""`python -m rlhf evaluate-reward`: which models a name stands for, what is printed, and what is kept."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from rlhf.cli import evaluate
from rlhf.cli.evaluate_reward import choose_config, main, name_models
from rlhf.cli.reward_tables import show_diagnosis
from rlhf.config.directories import ABOUT_DATA
from rlhf.config.errors import ConfigError
from rlhf.data.dataset import Comparison
from rlhf.evaluation.reward.diagnosis import diagnose
from rlhf.evaluation.reward.probes import make_probes
from rlhf.evaluation.reward.result import read_diagnoses
from rlhf.evaluation.reward.texts import Reading, collect_texts, join_readings


def test_models_of_one_name_are_told_apart_by_their_paths():
    two = [("mine", "a/mine"), ("mine", "b/mine"), ("other", "a/other"), ("other", "a/other")]
    assert name_models(two) == {"a/mine": "a/mine", "b/mine": "b/mine", "other": "a/other"}


def test_evaluate_hands_reward_models_over(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OPTForSequenceClassification"]}))
    monkeypatch.setattr("rlhf.cli.evaluate_reward.evaluate", lambda arguments, console: len(arguments))
    assert evaluate.main([str(tmp_path), "--probes", "3", "--json"]) == 4
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"]}))
    assert evaluate.main([str(tmp_path), "--probes", "3", "--json"]) == 2


def test_data_that_is_named_is_read_and_else_that_of_the_stage(make_config, tmp_path):
    made = make_config("data.demo.heldout_prompts=7", "data.prompt_format='Q: {prompt} A:'", "precision.dtype=bf16")
    made.seed = 5
    (tmp_path / "model").mkdir()
    (tmp_path / "spec.json").write_text(json.dumps({"config": asdict(made)}))
    words = "data=files", "data.files.train=a.jsonl", "data.files.heldout=b.jsonl", "data.response_format='{response}'"
    own, other = (choose_config(str(tmp_path / "model"), overrides) for overrides in ([], list(words)))
    assert own.data == made.data and own.seed == 5
    assert other.data.source == "files" and other.data.files.heldout == "b.jsonl" and other.seed != 5
    assert other.data.prompt_format == made.data.prompt_format and other.data.response_format == "{response}"
    made_by_stage = {"config": asdict(made), "inputs": {"data": str(tmp_path / "data")}}
    (tmp_path / "spec.json").write_text(json.dumps(made_by_stage))
    with pytest.raises(ConfigError, match="the data that it was trained on is gone"):
        choose_config(str(tmp_path / "model"), [])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ABOUT_DATA).write_text("{}")
    files = choose_config(str(tmp_path / "model"), []).data.files
    assert files.heldout == str(tmp_path / "data/heldout.jsonl")
    assert own.precision.dtype == other.precision.dtype == "bf16"


def test_a_table_fits_the_terminal():
    pairs = [
        Comparison(f"p{n}", "good one.", "bad.", 1.0 + n, {"source": "long source name " * 4 if n % 2 else "b"})
        for n in range(8)
    ]
    probes = list(make_probes(pairs, 8))
    texts = collect_texts(pairs, probes)
    numbers = np.arange(len(texts), dtype=float)
    reading = Reading(numbers, 1.0, numbers, numbers < 0, [""] * len(texts))
    found = diagnose(join_readings(texts, [reading, reading]), pairs, probes)
    for width in (80, 160):
        console = Console(width=width, record=True, file=None, force_terminal=False)
        with console.capture() as capture:
            console.print(show_diagnosis("mine", found, width))
        lines = capture.get().splitlines()
        assert max(map(len, lines)) <= width and lines[0].strip() == "mine"
        assert "Ensemble" in capture.get()
        assert ("rank correlation" in capture.get()) is (width == 160)


@pytest.mark.slow
def test_a_model_is_diagnosed_once(make_config, tokenizer, tmp_path, capsys, monkeypatch):
    from rlhf.models.load import new_scorer

    config = make_config()
    scorer = new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0)
    scorer.classifier.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    row = {"id": 1, "prompt": "How do I clean a kettle?", "chosen": "Rinse it.", "rejected": "No.", "subset": "math-prm"}
    (tmp_path / "bench.jsonl").write_text(json.dumps(row))
    arguments = [
        str(tmp_path / "mine"), "data.demo.heldout_prompts=4", f"output_root={tmp_path}", "--probes", "4", "--json",
        "gold=length", "--rewardbench", str(tmp_path / "bench.jsonl"),
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    (model,) = printed["models"]
    assert model["name"] == "mine" and len(model["fingerprint"]) == 64 and printed["pairs"] == []
    assert set(model["metrics"]["accuracy"]) == {"mean", "se", "low", "high", "n"}
    assert model["metrics"]["probe/empty"]["n"] == 4 and model["metrics"]["rewardbench/math-prm"]["n"] == 1
    assert len(model["missing"]) == 22 and model["metrics"]["accuracy_gold"]["n"] > 0
    (kept,) = (tmp_path / "evaluations").iterdir()
    assert (kept / "report.html").read_text().count("<svg") == 4
    assert read_diagnoses(kept).diagnoses["mine"].metrics["accuracy"].mean == model["metrics"]["accuracy"]["mean"]
    monkeypatch.setattr("rlhf.cli.evaluate_reward.diagnose_models", None)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == printed
    assert main([str(kept), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == printed
    assert main([str(kept), "--ensemble"]) == 2
    assert main([*arguments, "--probes", "-1"]) == 2
