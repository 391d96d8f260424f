"""Every model family runs the three stages, and leaves models that plain transformers loads."""

import json
import re
from pathlib import Path

import pytest
import torch
from support.precision_marks import fp16_case
from support.quick import mark_slow
from support.ranks import run_specs, specs

from rlhf.catalog.families import FAMILIES
from rlhf.config.compose import config_root
from rlhf.experiment.graph import build_graph
from rlhf.experiment.sweep import Task
from rlhf.launch.scheduler import run_stage_here

SMALL = (
    "sft.max_steps=3",
    "reward.max_steps=2",
    "ppo.max_steps=2",
    "ppo.rollout_batch_size=8",
    "ppo.batch_size=8",
    "ppo.update_epochs=2",
    "ppo.eval_every=null",
    "rollout.max_new_tokens=8",
    "data.demo.demonstrations=200",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=8",
)
LORA = (
    "lora=r8",
    "sft.gradient_checkpointing=true",
    "reward.gradient_checkpointing=true",
    "ppo.gradient_checkpointing=true",
)


def tiny(family):
    """What a user types."""
    return f"model={family.replace('_', '-')}-tiny"


def trained(config):
    """The stages of a configuration, run in this process as `python -m rlhf` does."""
    from rich.console import Console

    for node in build_graph(config):
        if not node.directory.done:
            assert run_stage_here(Task(node, config), Console(quiet=True), None).good
    return {node.stage: node.directory for node in build_graph(config)}


def load_classifier(place):
    """A reward model or critic: by plain transformers, or for a family without a classifier as its model card says."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    settings = AutoConfig.from_pretrained(place)
    if settings.model_type != "codegen":
        return AutoModelForSequenceClassification.from_pretrained(place, output_loading_info=True)
    from rlhf.models.heads import classifier_class

    assert "transformers has no sequence classifier" in (Path(place) / "README.md").read_text()
    _, body = AutoModel.from_pretrained(place, output_loading_info=True)
    assert not body["missing_keys"]
    return classifier_class(settings).from_pretrained(place, output_loading_info=True)


def test_each_family_has_its_own_name():
    assert [family.name for family in FAMILIES.values()] == list(FAMILIES)


def test_the_comment_on_a_model_of_ones_own_names_each_family():
    comment = (config_root() / "conf" / "model" / "local.yaml").read_text()
    assert [family for family in FAMILIES if not re.search(rf"#.*\b{family}\b", comment)] == []


# A family for each kind of positions and of heads; of attention test_hybrid.py and test_unpadded.py have each.
APART = ("bloom", "codegen", "gemma2")


@pytest.mark.parametrize("family", mark_slow(FAMILIES, APART))
def test_a_family_runs_all_stages_and_plain_transformers_loads_what_they_leave(make_config, tmp_path, family):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = make_config(tiny(family), *SMALL, f"output_root={tmp_path}")
    directories = trained(config)
    for place in (directories["sft"].model, directories["ppo"].model):
        model, report = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
        assert model.config.model_type == family and not report["missing_keys"] and not report["unexpected_keys"]
        assert "AutoModelForCausalLM" in (place / "README.md").read_text()
        assert AutoTokenizer.from_pretrained(place).pad_token_id != AutoTokenizer.from_pretrained(place).eos_token_id
        assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    for place in (directories["reward"].model, directories["ppo"].path / "critic"):
        model, report = load_classifier(place)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 1)
    moved = [AutoModelForCausalLM.from_pretrained(directories[stage].model) for stage in ("sft", "ppo")]
    assert any(not torch.equal(a, b) for a, b in zip(*(m.parameters() for m in moved), strict=True))


# The ZeRO stage of each family.
ZEROS = {family: number % 4 for number, family in enumerate(FAMILIES)}


@pytest.fixture(scope="module")
def with_adapters(make_config, tmp_path_factory):
    """`with_adapters(family)`: a configuration with adapters and gradient checkpointing, whose stages two ranks have run,
    all at once."""

    def run(family):
        if family not in done:
            done.update(on_two_ranks(make_config, tmp_path_factory, ZEROS))
        return done[family]

    done = {}
    return run


def on_two_ranks(make_config, tmp_path_factory, stages):
    """Families with adapters and gradient checkpointing, each at the ZeRO stage that `stages` says, trained."""
    configs = {
        family: make_config(
            tiny(family), *SMALL, *LORA, "hardware.gpus_per_node=2", f"zero='{zero}'",
            "zero.stage3_param_persistence_threshold=0",
            f"output_root={tmp_path_factory.mktemp(family)}",
        )
        for family, zero in stages.items()
    }  # fmt: skip
    run_specs([file for config in configs.values() for file in specs(config)], world=2)
    return configs


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_every_family_runs_all_stages_with_adapters_at_the_other_zero_stages(make_config, tmp_path_factory, shift):
    stages = {family: (zero + shift) % 4 for family, zero in ZEROS.items()}
    for config in on_two_ranks(make_config, tmp_path_factory, stages).values():
        assert all(node.directory.done for node in build_graph(config))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_all_stages_with_adapters_on_two_ranks(with_adapters, family):
    from peft import PeftConfig
    from transformers import AutoModelForCausalLM

    for node in build_graph(with_adapters(family)):
        assert node.directory.done
        adapter = node.directory.path / "adapter"
        assert PeftConfig.from_pretrained(adapter).r == 8
        kind = AutoModelForCausalLM if node.stage != "reward" else None
        loaded = kind.from_pretrained(node.directory.model) if kind else load_classifier(node.directory.model)[0]
        assert torch.isfinite(loaded(torch.tensor([[5, 6, 7]])).logits).all()
        lines = [json.loads(line) for line in node.directory.metrics_file.read_text().splitlines()]
        assert lines[-1]["step"] == len(lines) and all(line["train/nonfinite"] == 0.0 for line in lines)


@pytest.mark.parametrize("zero", ["2", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("0", "3"))])
@pytest.mark.parametrize("precision", ["bf16", fp16_case("fp16", marks=[pytest.mark.slow])])
def test_half_precision_runs_all_stages(make_config, tmp_path, precision, zero):
    from transformers import AutoModelForCausalLM

    config = make_config(tiny("llama"), *SMALL, f"precision={precision}", f"zero='{zero}'", f"output_root={tmp_path}")
    directories = trained(config)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    models = [AutoModelForCausalLM.from_pretrained(directories[stage].model, dtype="auto") for stage in ("sft", "ppo")]
    assert all(parameter.dtype == dtype for parameter in models[0].parameters())
    assert any(not torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    for line in directories["ppo"].metrics_file.read_text().splitlines():
        metrics = json.loads(line)
        assert metrics["train/nonfinite"] == metrics["policy/overflows"] == metrics["value/overflows"] == 0.0


def test_an_actor_learns_from_a_reward_model_of_another_family(make_config, tmp_path):
    config = make_config(tiny("opt"), "reward_model=gpt2-tiny", *SMALL, f"output_root={tmp_path}")
    directories = trained(config)
    critic = json.loads((directories["ppo"].path / "critic" / "config.json").read_text())
    assert critic["model_type"] == "gpt2"  # they share the built-in tokenizer
    config = make_config(tiny("opt"), "reward_model=gpt2-tiny", *SMALL, f"output_root={tmp_path}", "ppo.critic=actor")
    directories = trained(config)
    critic = json.loads((directories["ppo"].path / "critic" / "config.json").read_text())
    assert critic["model_type"] == "opt"
