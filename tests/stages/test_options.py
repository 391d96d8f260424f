"""Every option of every group runs all three stages, small, in this process."""

import json
import math

import pytest

from rlhf.experiment.graph import nodes
from rlhf.experiment.spec import freeze
from rlhf.launch.worker import run_rank

SMALL = (
    "sft.max_steps=2",
    "reward.max_steps=2",
    "ppo.max_steps=2",
    "ppo.rollout_batch_size=8",
    "ppo.batch_size=4",
    "ppo.update_epochs=1",
    "rollout.max_new_tokens=6",
    "data.demo.demonstrations=280",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=8",
    "zero.persistence_elements=0",
    "data.demo.answers_per_prompt=2",
    "sft.micro_batch_size=8",
    "ppo.micro_batch_size=2",
)

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
    "evaluation along the way": ("sft.eval_every=1", "reward.eval_every=1", "ppo.eval_every=1"),
    "deepspeed-chat": (
        "sft=deepspeed-chat",
        "reward=deepspeed-chat",
        "ppo=deepspeed-chat",
        "sft.batch_size=16",
        "rollout.do_sample=false",
    ),
    "a narrow embedding after layer norm": ("model.embedding=32", "model.norm_first=false"),
}


def run_stages(config):
    """Run all stages of a configuration; their results by name."""
    for node in nodes(config):
        run_rank(freeze(node, config))
    return {node.stage: node.directory.result().metrics for node in nodes(config)}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_option(make_config, tmp_path, name):
    config = make_config(
        *SMALL[:-2] if "deepspeed" in name else SMALL, *OPTIONS[name], *SMALL[:6], f"output_root={tmp_path}"
    )
    results = run_stages(config)
    for metrics in results.values():
        assert all(math.isfinite(value) for value in metrics.values()), metrics
    for node in nodes(config):
        assert (node.directory.model / "model.safetensors").is_file()
    if name == "the other choice of each":
        coefficients = [json.loads(line)["kl/coef"] for line in nodes(config)[2].directory.metrics.read_text().splitlines()]
        assert coefficients[1] != coefficients[0]
        assert "eval/reward_bias" not in results["reward"]


def test_the_bias_makes_demonstrations_score_zero(make_config, tmp_path):  # row 10
    import torch

    from rlhf.data.records import load_dataset
    from rlhf.data.tokens import encode_demonstrations, right_mask, sequence_batch
    from rlhf.models.heads import BIAS, last_token, model_inputs
    from rlhf.models.load import Source, load_scorer
    from rlhf.models.tokenizer import load_tokenizer

    config = make_config(*SMALL, "stage=reward", f"output_root={tmp_path}")
    run_stages(config)
    place = str(nodes(config)[0].directory.model)
    scorer, tokenizer = load_scorer(Source(place, "ppo.reward"), config, 0.0), load_tokenizer(place, "ppo.reward")
    items = encode_demonstrations(load_dataset(config).train.demonstrations, tokenizer, config.data)
    batch = sequence_batch(items, tokenizer.pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        outputs = scorer(**model_inputs(scorer, batch.ids, right_mask(batch.lengths, batch.ids.size(1))))
    scores = last_token(outputs, batch.lengths) - getattr(scorer.config, BIAS)
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-5)


def test_merged_adapters_give_the_trained_function(make_config, tmp_path, tokenizer):
    import torch

    from rlhf.config.derive import batches
    from rlhf.engine.distributed import start
    from rlhf.engine.save import save_model
    from rlhf.engine.zero import training_engine
    from rlhf.models.load import Source, load_policy, new_policy

    config = make_config(*SMALL, "lora=r8")
    start(config)
    engine = training_engine(
        new_policy(config.model, config, tokenizer, 0.0), config, config.sft, batches(config, "sft"), 0.0
    )
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_model(engine, tokenizer, config, tmp_path / "model")
    ids = torch.arange(2, 20)[None]
    engine.eval()
    with torch.no_grad():
        merged, adapted = (
            load_policy(Source(str(tmp_path / "model"), "ppo.actor"), config, 0.0)(ids).logits,
            engine(ids).logits,
        )
    assert torch.allclose(merged, adapted, atol=1e-5)


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
