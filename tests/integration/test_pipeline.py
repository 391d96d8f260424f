"""The command line, end to end, as a user meets it: small, on the CPU, in real processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import children_seconds, clean_environment, run_here, run_rlhf
from support.wandb_files import history

SMALL = (
    "sft.max_steps=6",
    "reward.max_steps=4",
    "ppo.max_steps=2",
    "ppo.rollout_batch_size=16",
    "ppo.batch_size=16",
    "ppo.update_epochs=2",
    "rollout.max_new_tokens=12",
    "data.demo.demonstrations=300",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=16",
)


SECRET = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def first(place):
    setup = f"launcher.setup=['export HF_TOKEN={SECRET}']"
    done = run_rlhf(*SMALL, "tracking=wandb", "tracking.tensorboard=true", setup, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def stage(place, name) -> Path:
    (found,) = (place / "outputs" / "stages").glob(f"{name}-*")
    return found


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def last_summary(place) -> dict:
    return json.loads((place / "outputs" / "runs" / "latest" / "summary.json").read_text())


def test_three_stages_run_and_end_in_a_table(place, first):
    for text in (
        "perplexity",
        "accuracy",
        "gold reward of SFT",
        "gold reward of the policy",
        "KL to the reference",
        "mean length of the policy",
        "perplexity before SFT",
        " ± ",
    ):
        assert text in first.stdout
    assert "Held-out prompts" in first.stdout and "loss" in first.stdout and "reward" in first.stdout


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("sft", {"eval/perplexity", "eval/perplexity_se", "eval/perplexity_initial", "data/responses_cut"}),
        ("reward", {"eval/accuracy", "eval/accuracy_se", "eval/accuracy_initial", "eval/accuracy_ceiling", "data/ties"}),
        ("ppo", {"eval/gold", "eval/gold_sft", "eval/gold_sft_std", "eval/kl_sequence", "eval/reward", "eval/length"}),
        ("ppo", {"eval/gold_se", "eval/gold_sft_se", "eval/kl_sequence_se", "eval/reward_se", "eval/length_se"}),
    ],
)
def test_a_stage_directory_holds_everything(place, first, name, figures):
    directory = stage(place, name)
    result = json.loads((directory / "result.json").read_text())
    assert set(result) == {"stage", "fingerprint", "seconds", "metrics"}
    assert figures <= set(result["metrics"])
    assert directory.name == f"{name}-{result['fingerprint'][:12]}"
    assert json.loads((directory / "status.json").read_text())["state"] == "done"
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["hardware"]["gpu"] == "cpu"
    assert "kl_coef" in (directory / "config.yaml").read_text()
    assert all({"step", "time"} <= set(line) for line in lines(directory / "metrics.jsonl"))
    model = {file.name for file in (directory / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= model


def test_a_secret_is_in_the_specs_alone_which_others_cannot_read(place, first):
    assert SECRET not in first.stdout + first.stderr
    assert "launcher.setup holds a secret" in first.stdout
    holders = {file for file in place.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()}
    assert holders == {stage(place, name) / "spec.json" for name in ("sft", "reward", "ppo")}
    assert {file.stat().st_mode & 0o777 for file in holders} == {0o600}
    (run,) = (run for run in (place / "outputs" / "runs").iterdir() if not run.is_symlink())
    masked = [run / "config.yaml", run / "summary.json", run / ".hydra" / "config.yaml", run / ".hydra" / "overrides.yaml"]
    for file in (*masked, stage(place, "ppo") / "config.yaml"):
        assert "HF_TOKEN=<secret>" in file.read_text(), file


def test_samples_are_side_by_side(place, first):
    samples = lines(stage(place, "ppo") / "samples.jsonl")
    assert len(samples) == 16
    assert {"prompt", "sft", "ppo", "sft_score", "ppo_score", "sft_gold", "ppo_gold"} <= set(samples[0])


def test_throughput_is_logged_per_phase(place, first):
    for line in lines(stage(place, "ppo") / "metrics.jsonl"):
        for phase in ("rollout", "score", "train"):
            for figure in ("samples_per_s", "tokens_per_s", "tflops_per_gpu", "mfu"):
                assert line[f"throughput/{phase}_{figure}"] > 0


def test_wandb_offline_files_hold_the_curves(place, first):
    (file,) = stage(place, "ppo").glob("wandb/offline-run-*/run-*.wandb")
    found = history(file)
    logged = lines(stage(place, "ppo") / "metrics.jsonl")
    for name in ("reward/mean", "throughput/samples_per_s", "reward/std", "kl/sequence"):
        assert found[name] == pytest.approx([line[name] for line in logged])
    assert any(name.startswith("samples") for name in found)


def test_tensorboard_files_hold_the_curves(place, first):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage(place, "ppo") / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward/mean")] == [1, 2]


PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
actor, reward, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(actor)
assert tokenizer.pad_token_id != tokenizer.eos_token_id
batch = tokenizer([text, text + " again and again"], return_tensors="pt", padding=True, padding_side="right")
inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
with torch.no_grad():
    logits = AutoModelForCausalLM.from_pretrained(actor)(**inputs).logits
    scores = AutoModelForSequenceClassification.from_pretrained(reward)(**inputs).logits
assert "rlhf" not in sys.modules
print(json.dumps([batch.input_ids.tolist(), batch.attention_mask.tolist(), logits.tolist(), scores.tolist()]))
"""


def test_plain_transformers_loads_the_artifacts(place, first, make_config):
    import torch

    from rlhf.data.tokens import right_mask
    from rlhf.models.heads import last_token, model_inputs
    from rlhf.models.load import load_policy, load_scorer
    from rlhf.models.source import Source

    models = [str(stage(place, name) / "model") for name in ("ppo", "reward")]
    command = [sys.executable, "-c", PLAIN, *models, "Human: How do I clean a pan?"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    ids, mask, logits, scores = (torch.tensor(value) for value in json.loads(done.stdout))
    config, lengths = make_config(), mask.sum(1)
    with torch.no_grad():
        ours = load_policy(Source(models[0], "ppo.actor"), config, config.zero, 0.0)
        our_logits = ours(**model_inputs(ours, ids, mask)).logits
        scorer = load_scorer(Source(models[1], "ppo.reward"), config, config.reward_zero, 0.0)
        our_scores = last_token(scorer(**model_inputs(scorer, ids, mask)), lengths)
        assert scorer.bias == scorer.config.reward_bias != 0.0
    real = right_mask(lengths, ids.size(1)).bool()
    assert torch.allclose(our_logits[real], logits[real], atol=1e-5)
    assert torch.allclose(our_scores, scores.squeeze(1) - scorer.bias, atol=1e-5)


def test_the_same_command_again_trains_nothing(place, first):
    before = {file: file.stat().st_mtime_ns for file in (place / "outputs" / "stages").rglob("*") if file.is_file()}
    used = children_seconds()
    again = run_rlhf(*SMALL, "hardware.gpus_per_node=2", "zero=2", cwd=place)  # places do not matter
    assert again.returncode == 0, again.stderr
    assert children_seconds() - used < 15
    assert "gold reward of the policy" in again.stdout
    assert before == {file: file.stat().st_mtime_ns for file in (place / "outputs" / "stages").rglob("*") if file.is_file()}
    assert all(entry["reused"] for entry in last_summary(place)["stages"].values())


def test_another_kl_coefficient_runs_ppo_alone(place, first):
    done = run_here(*SMALL, "ppo.kl_coef=0.5", "stage=ppo", cwd=place)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name.split("-")[0] for path in (place / "outputs" / "stages").iterdir())
    assert names == ["ppo", "ppo", "reward", "sft"]
    summary = last_summary(place)["stages"]
    assert list(summary) == ["ppo"] and not summary["ppo"]["reused"]


def test_ppo_takes_models_by_path(place, first, tmp_path):
    actor, reward = stage(place, "sft"), stage(place, "reward") / "model"
    done = run_here(*SMALL, "stage=ppo", f"ppo.actor={actor}", f"ppo.reward={reward}", f"output_root={tmp_path}", cwd=place)
    assert done.returncode == 0, done.stderr
    # The same models by another way: the same result.
    (found,) = (tmp_path / "stages").iterdir()
    assert found.name in {path.name for path in (place / "outputs" / "stages").glob("ppo-*")}


def test_ppo_says_what_is_missing(tmp_path):
    done = run_here("stage=ppo", cwd=tmp_path)
    assert done.returncode == 2
    assert "stage=sft" in done.stderr and "ppo.actor=" in done.stderr and "Traceback" not in done.stderr


def test_bad_input_stops_before_anything_is_trained(tmp_path):
    used = children_seconds()
    done = run_rlhf("-m", "ppo.gamma=0.9,1.5", cwd=tmp_path)
    assert done.returncode == 2 and children_seconds() - used < 5
    assert "ppo.gamma=1.5" in done.stderr
    assert not (tmp_path / "outputs" / "stages").exists()


def copy_of(model, place):
    """A copy of a saved model."""
    place.mkdir()
    for file in model.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_a_damaged_model_stops_before_anything_is_trained(place, first, tmp_path):
    broken = copy_of(stage(place, "sft") / "model", tmp_path / "actor")
    (broken / "model.safetensors").write_bytes(b"not a model")
    used = children_seconds()
    done = run_rlhf(*SMALL, "stages=[reward,ppo]", f"ppo.actor={broken}", cwd=tmp_path)
    assert done.returncode == 2 and children_seconds() - used < 15
    assert f"ppo.actor={broken}: " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.parametrize("file", ("model.safetensors", "tokenizer.json", "config.json"))
def test_a_finished_stage_that_was_changed_stops_the_next_before_it_starts(place, first, tmp_path, file):
    """Its weights have the size that they had; the plan says so, and nobody trains on them."""
    shutil.copytree(place / "outputs" / "stages", tmp_path / "outputs" / "stages", symlinks=True)
    changed = stage(tmp_path, "sft") / "model" / file
    content = bytearray(changed.read_bytes())
    content[-3:] = b"xyz"
    changed.write_bytes(content if file == "model.safetensors" else content[: len(content) // 2])
    done = run_here(*SMALL, "stage=ppo", "ppo.kl_coef=0.3", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{file} has " in done.stderr and "the stage is trained again" in done.stderr and "Traceback" not in done.stderr
    names = [{path.name for path in (root / "outputs" / "stages").iterdir()} for root in (place, tmp_path)]
    assert names[0] == names[1]


def test_a_failed_stage_says_why_and_leaves_a_non_zero_exit_code(place, first, tmp_path):
    """A reward model of NaN, which only shows when it is used."""
    from safetensors.torch import load_file, save_file

    actor, broken = stage(place, "sft") / "model", copy_of(stage(place, "reward") / "model", tmp_path / "reward")
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    options = ("stage=ppo", f"ppo.actor={actor}", f"ppo.reward={broken}", "ppo.critic=actor", "ppo.max_nonfinite=1")
    done = run_here(*SMALL, *options, cwd=tmp_path)
    assert done.returncode == 1
    assert "a score is not finite" in done.stderr and "Traceback" not in done.stderr
    (directory,) = (tmp_path / "outputs" / "stages").iterdir()
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "failed" and "a score is not finite" in status["reason"]
    assert (directory / "nonfinite" / "step-1-rank-0.safetensors").is_file()


def test_help_is_a_useful_first_screen(tmp_path):
    done = run_rlhf("--help", cwd=tmp_path)
    for text in ("python -m rlhf stage=ppo", "reward_model: ", "dgx8-80gx8", "opt-66b", "zero: 0, 1, 2"):
        assert text in done.stdout


def test_composition_loads_little_and_no_torch(tmp_path):
    """Modules are counted, not seconds, which the machine decides: each is a millisecond or two."""
    words = ("model=opt-13b", "reward_model=opt-350m", "hardware=dgx8", "zero=3", "--cfg", "job")
    environment = clean_environment(tmp_path) | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"rlhf.cli.prepare", "hydra"} <= loaded and len(loaded) < 700
    assert {name.split(".")[0] for name in loaded}.isdisjoint(("torch", "transformers", "deepspeed", "datasets", "numpy"))
    assert "hidden" not in done.stderr and "opt-13b" in done.stdout and "gpus_per_node: 8" in done.stdout
