"""Every option of every group runs all three stages, small, in this process."""

import json
import math
import pkgutil

import pytest
import torch
from support.quick import mark_slow
from support.small import SMALL_STAGES

from rlhf.catalog.stage import kind_of
from rlhf.config.checks import check
from rlhf.engine.save import save_model
from rlhf.engine.zero import TrainingSpec, training_engine
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.launch.worker import run_rank
from rlhf.models.load import load_policy, new_policy
from rlhf.models.source import Source
from rlhf.planner.auto import choose_layout
from rlhf.planner.batches import batches
from rlhf.runtime.distributed import start

SMALL = (
    *SMALL_STAGES, "rollout.max_new_tokens=6", "zero.stage3_param_persistence_threshold=0",
    "sft.micro_batch_size=8", "ppo.micro_batch_size=2",
)  # fmt: skip

OPTIONS = {
    "bf16": ("precision=bf16",),
    "offload of the optimiser": ("zero=2-offload",),
    "offload of everything": ("zero=3-offload",),
    "adapters": ("lora=r8", "lora.dropout=0.2"),
    "adapters on some modules, sharded": ("lora=r8", "lora.target_modules=[q_proj,v_proj]", "zero=3"),
    "gradient checkpointing": tuple(f"{stage}.gradient_checkpointing=true" for stage in ("sft", "reward", "ppo")),
    "gradient checkpointing of adapters": ("lora=r8", "ppo.gradient_checkpointing=true", "sft.gradient_checkpointing=true"),
    "the other choice of each": (
        "sft.loss_on=full",
        "sft.dropout=0.1",
        "reward.dropout=0.1",
        "ppo.critic_weight_decay=0.2",
        "reward.grouped=false",
        "reward.normalize=none",
        "reward.batch_size=8",
        "ppo.kl_controller=adaptive",
        "ppo.whiten_rewards=true",
        "ppo.reward_clip=1.0",
        "ppo.eos_penalty_mode=subtract",
        "ppo.schedule=constant",
        "ppo.weight_decay=0.1",
        "rollout.top_k=20",
        "rollout.top_p=0.9",
        "rollout.temperature=0.7",
        "rollout.min_new_tokens=2",
        "rollout.micro_batch_size=4",
        "data.truncation=left",
    ),
    "deepspeed-chat": (
        "sft=deepspeed-chat",
        "reward=deepspeed-chat",
        "ppo=deepspeed-chat",
        "sft.batch_size=16",
        "rollout.do_sample=false",
    ),
    "a narrow embedding after layer norm": ("model.word_embed_proj_dim=32", "model.do_layer_norm_before=false"),
    "another sharding for each role": (
        "zero='2'", "zero@critic_zero=3-offload", "zero@reference_zero='3'", "zero@reward_zero='1'"
    ),
    "adapters of some roles": ("lora=r8", "lora@reward_lora=none", "critic_lora.rank=4", "lora.learning_rate=1e-3"),
    "adapters and weights": ("lora=r8", "lora.only=false"),
    "scores of deviation one": ("reward.normalize=standard",),
    "dropout in the updates": ("ppo.dropout=0.1", "ppo.critic_dropout=0.1", "ppo.ratio_tolerance=1.0"),
    "a critic from the actor, a pre-training loss, a moving average, responses of one length": (
        "ppo.critic=actor",
        "ppo.critic_gradient_checkpointing=true",
        "ppo.ptx_coef=27.8",
        "ppo.ema=true",
        "ppo.ema_interval=2",
        "rollout.fixed_length=true",
        "ppo.eos_penalty=null",
        "ppo.length_penalty=0.01",
        "sft.eval_every=1",
        "reward.eval_every=1",
        "ppo.eval_every=1",
    ),
}  # fmt: skip

# What no test of a part sees: how stages work together.
QUICK = (
    "adapters on some modules, sharded", "the other choice of each", "deepspeed-chat", "another sharding for each role",
    "a critic from the actor, a pre-training loss, a moving average, responses of one length",
)  # fmt: skip


def run_stages(config):
    """Run all stages of a configuration; their results by name."""
    for node in build_graph(config):
        chosen = choose_layout(config, node.stage).config
        check(chosen)
        run_rank(write_spec(node, chosen))
    return {node.stage: node.directory.result().metrics for node in build_graph(config)}


def logged(config, stage):
    """The metrics of a stage's steps."""
    (node,) = (node for node in build_graph(config) if node.stage == stage)
    return [json.loads(line) for line in node.directory.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize("name", mark_slow(OPTIONS, QUICK))
def test_option(make_config, tmp_path, name):
    config = make_config(
        *SMALL[:-2] if "deepspeed" in name else SMALL, *OPTIONS[name], *SMALL[:6], f"output_root={tmp_path}"
    )
    results = run_stages(config)
    for metrics in results.values():
        assert all(math.isfinite(value) for value in metrics.values()), metrics
    for node in build_graph(config):
        assert (node.directory.model / "model.safetensors").is_file()
    if name == "the other choice of each":
        coefficients = [line["kl/coef"] for line in logged(config, "ppo")]
        assert coefficients[1] != coefficients[0]
        assert "eval/reward_bias" not in results["reward"]
    for stage in ("sft", "reward", "ppo"):
        assert all(line["train/nonfinite"] == 0.0 for line in logged(config, stage))
    ppo = build_graph(config)[2].directory.path
    assert (ppo / "critic" / "model.safetensors").is_file()
    assert (ppo / "ema" / "model.safetensors").is_file() == ("ppo.ema=true" in OPTIONS[name])
    assert all(("policy/ptx_loss" in line) == ("ppo.ptx_coef=27.8" in OPTIONS[name]) for line in logged(config, "ppo"))
    assert ("eval/reward_scale" in results["reward"]) == (name == "scores of deviation one")
    if "rollout.fixed_length=true" in OPTIONS[name]:
        assert {line["length/response"] for line in logged(config, "ppo")} == {6.0}


def test_merged_adapters_give_the_trained_function(make_config, tmp_path, tokenizer):
    config = make_config(*SMALL, "lora=r8")
    start(config)
    learning = TrainingSpec(config.sft, batches(config, "sft"), config.zero, config.lora, 0.1, 0.0, checkpointing=False)
    engine = training_engine(new_policy(config.model, config, tokenizer, config.zero, 0.0), config, learning)
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    ids = torch.arange(2, 20)[None]
    engine.eval()
    with torch.no_grad():
        merged = load_policy(Source(str(tmp_path / "model"), "ppo.actor"), config, config.zero, 0.0)(ids).logits
        assert torch.allclose(merged, engine(ids).logits, atol=1e-5)


def spoiled(function, calls):
    """The function, whose tensor is NaN at these of its calls."""
    count = iter(range(1000))
    return lambda *arguments: function(*arguments) * (math.nan if next(count) in calls else 1.0)


# Which function gives the first step's number that is not finite, and what is then missing from its metrics.
SPOILED = {
    "sft": ("rlhf.stages.sft.train.loss_of", range(4), "train/loss"),
    "reward": ("rlhf.stages.reward.comparisons.pair_loss", range(1), "train/loss"),
    "ppo": ("rlhf.ppo.trainer.DeepSpeedPPOTrainer.score_responses", range(4), "reward/mean"),
}


@pytest.mark.parametrize("stage", list(SPOILED))
def test_a_step_that_is_not_finite_is_left_out_and_kept(make_config, tmp_path, monkeypatch, stage):
    place, calls, missing = SPOILED[stage]
    config = make_config(*SMALL, "sft.batch_size=32", "reward.batch_size=8", f"output_root={tmp_path}")
    config.stages = ["sft", "reward", "ppo"] if stage == "ppo" else [stage]
    monkeypatch.setattr(place, spoiled(pkgutil.resolve_name(place), calls))
    results = run_stages(config)
    first, second = logged(config, stage)
    assert (first["train/nonfinite"], second["train/nonfinite"]) == (1.0, 0.0)
    assert missing not in first and math.isfinite(second[missing])
    assert all(value is not None and math.isfinite(value) for value in first.values())
    assert all(math.isfinite(value) for value in results[stage].values())
    directory = build_graph(config)[-1].directory.path / "nonfinite"
    assert {file.name for file in directory.iterdir()} == {"step-1.json", "step-1-rank-0.safetensors"}


@pytest.mark.parametrize("stage", ["sft", "reward"])  # of PPO test_resume.py has it
def test_too_many_steps_in_a_row_that_are_not_finite_stop_a_stage(make_config, tmp_path, monkeypatch, stage):
    place, _, _ = SPOILED[stage]
    config = make_config(*SMALL, f"{stage}.max_nonfinite=2", f"output_root={tmp_path}")
    config.stages = [stage]
    monkeypatch.setattr(place, spoiled(pkgutil.resolve_name(place), range(1000)))
    with pytest.raises(FloatingPointError, match=r"is not finite for 2 steps in a row .*lower the learning rate"):
        run_stages(config)
    assert not build_graph(config)[-1].directory.done


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stage", ["sft", "reward", "bench"])
def test_a_stage_whose_final_figures_are_not_finite_has_failed(make_config, tmp_path, monkeypatch, stage, value):
    """As with a learning rate of 1e9: whatever was saved is no result, and nothing may start from it."""
    config = make_config(*SMALL, f"stage={stage}", f"output_root={tmp_path}")
    start(config)
    monkeypatch.setattr(kind_of(stage).run.replace(":", "."), lambda *_: {"eval/loss": 1.0, "eval/perplexity": value})
    with pytest.raises(FloatingPointError, match=f"final evaluation is not finite .eval/perplexity is {value}"):
        run_stages(config)
    (node,) = build_graph(config)
    assert not node.directory.done and not (node.directory.path / "result.json").exists()


def test_stages_given_by_their_directories_are_their_models(make_config, tmp_path):
    """As `ppo.critic=outputs/stages/reward-0123456789ab`: its model/ is meant."""
    config = make_config(*SMALL, f"output_root={tmp_path}")
    config.stages = ["sft", "reward"]
    run_stages(config)
    sft, reward = (str(node.directory.path) for node in build_graph(config))
    config.stages, config.ppo.actor, config.ppo.reward, config.ppo.critic = ["ppo"], sft, reward, reward
    results = run_stages(config)
    assert math.isfinite(results["ppo"]["eval/reward"])


def test_own_files(make_config, tmp_path):
    rows = [{"prompt": f"Question {i}?", "chosen": f"A good answer number {i}.", "rejected": f"No {i}."} for i in range(40)]
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = make_config(
        *SMALL,
        "data=files",
        f"data.files.train={tmp_path}/train.jsonl",
        f"data.files.heldout={tmp_path}/heldout.jsonl",
        "data.max_prompt_tokens=64",
        "data.max_response_tokens=64",
        f"output_root={tmp_path}/outputs",
    )
    results = run_stages(config)
    assert "eval/gold" not in results["ppo"] and "eval/accuracy_ceiling" not in results["reward"]
    assert results["sft"]["eval/perplexity"] > 1
