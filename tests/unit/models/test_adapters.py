"""Adapters that are saved by themselves: found again with the model that they belong to, and trained on from there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small import SMALL_STAGES
from transformers import AutoModelForCausalLM

from rlhf.cli.prepare import check_sources
from rlhf.config.errors import ConfigError
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.launch.worker import run_rank
from rlhf.models.adapters import BASE, adapter_base
from rlhf.models.load import load_policy
from rlhf.models.preflight import check_source
from rlhf.models.source import Source

SMALL = (
    *SMALL_STAGES, "sft.max_steps=1", "reward.max_steps=1",
    "ppo.max_steps=1", "rollout.max_new_tokens=6", "reward.normalize=none",
)  # fmt: skip
ADAPTERS = ("lora=r8", "sft.learning_rate=0.1", "lora.save_merged=false", "reward_lora.save_merged=false")


def run(make_config, root, *overrides):
    """Run a stage; returns its directory."""
    config = make_config(*SMALL, *overrides)
    config.output_root = str(root)
    (node,) = build_graph(config)
    check_sources(config, node)
    run_rank(write_spec(node, config))
    return node.directory


@pytest.fixture(scope="module")
def trained(make_config, models, tmp_path_factory):
    """A directory with base/, a policy and a reward model, and with outputs/, the adapters that stages trained on them; the
    policy was named by a path as seen from that directory."""
    root = tmp_path_factory.mktemp("trained")
    for name, model in zip(("actor", "reward"), models, strict=True):
        shutil.copytree(model, root / "base" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run(make_config, root / "outputs", *ADAPTERS, "stage=sft", "model.path=base/actor")
        run(make_config, root / "outputs", *ADAPTERS, "stage=reward", "reward_model.path=base/reward")
    return root


def adapters(root, stage="sft"):
    """The adapters of a stage."""
    (found,) = (root / "outputs" / "stages").glob(f"{stage}-*")
    return found / "model"


@pytest.fixture
def moved(trained, tmp_path, monkeypatch):
    """The whole at another place, and nothing where it was, as seen from somewhere else."""
    root = shutil.copytree(trained, tmp_path / "moved")
    for stage in ("sft", "reward"):
        for name in (BASE, "adapter_config.json"):
            file = adapters(root, stage) / name
            file.write_text(file.read_text().replace(str(trained), "/nowhere"))
    (adapters(root).parent / "manifest.json").unlink()
    monkeypatch.chdir(tmp_path)
    return root


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 26).view(2, 12)).logits


def policy(make_config, place):
    config = make_config()
    return load_policy(Source(str(place), "ppo.actor"), config, config.zero, 0.0)


def test_ppo_trains_every_weight_of_base_and_adapters(make_config, trained, tmp_path, monkeypatch):
    """The case adapter-actor-frozen, from another working directory."""
    monkeypatch.chdir(tmp_path)
    place = adapters(trained)
    start = policy(make_config, place).state_dict()
    options = ("stage=ppo", f"ppo.actor={place}", f"ppo.reward={trained / 'base' / 'reward'}", "ppo.critic=actor")
    done = run(make_config, tmp_path / "outputs", *options)
    saved = load_file(done.model / "model.safetensors")
    frozen = [name for name, weight in saved.items() if torch.equal(weight, start[name])]
    assert frozen == [] and (done.model / "config.json").is_file()
    critic = load_file(done.path / "critic" / "model.safetensors")
    body = {name for name in critic if name in start}
    near = {name for name in body if torch.allclose(critic[name], start[name], atol=1e-2)}
    assert len(body) > 20 and near == body  # it began as base and adapters, too


def test_plain_peft_finds_the_base_from_another_directory(make_config, trained, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    monkeypatch.chdir(tmp_path)
    place = adapters(trained)
    stated = json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(stated) == trained / "base" / "actor"
    ours, plain = (logits(policy(make_config, path)) for path in (place, stated))
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(place)), ours, atol=1e-5)
    assert float((ours - plain).abs().max()) > 1e-3


def test_base_and_adapters_may_be_moved_together(make_config, trained, moved):
    assert adapter_base(Source(str(adapters(moved)), "ppo.actor")).path.endswith("base/actor")
    check_source(Source(str(adapters(moved)), "ppo.actor"), make_config(), scorer=False)
    assert torch.equal(logits(policy(make_config, adapters(moved))), logits(policy(make_config, adapters(trained))))


def test_another_model_where_the_base_was_is_refused(make_config, moved):
    base = moved / "base" / "actor" / "model.safetensors"
    weights = load_file(base)
    next(iter(weights.values())).view(-1)[3] += 1
    save_file(weights, base, {"format": "pt"})
    for use in (lambda s: check_source(s, make_config(), scorer=False), lambda s: policy(make_config, s.path)):
        with pytest.raises(ConfigError, match=r"base/actor is not the model that its adapters were trained on"):
            use(Source(str(adapters(moved)), "ppo.actor"))


def test_a_base_that_has_gone_is_told_before_anything_starts(make_config, moved):
    shutil.rmtree(moved / "base" / "actor")
    with pytest.raises(ConfigError, match="not at /nowhere/base/actor; put that model there, or give a copy of"):
        check_source(Source(str(adapters(moved)), "ppo.actor"), make_config(), scorer=False)


def test_adapters_of_somebody_else_count_by_their_base_too(models, trained, tmp_path):
    """They have no base_model.json: whatever is at the path that they name is their base."""
    base, other = tmp_path / "base", tmp_path / "adapters"
    shutil.copytree(models[0], base)
    shutil.copytree(adapters(trained), other)
    (other / BASE).unlink()
    settings = json.loads((other / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (other / "adapter_config.json").write_text(json.dumps(settings))
    before = content_id(str(other))
    assert adapter_base(Source(str(other), "ppo.actor")).path == str(base) and content_id(str(other)) == before
    weights = load_file(base / "model.safetensors")
    next(iter(weights.values())).view(-1)[3] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert content_id(str(other)) != before


def test_adapters_of_the_wrong_kind_are_refused(make_config, trained):
    config = make_config()
    policy_source, scorer_source = (Source(str(adapters(trained, stage)), "ppo.actor") for stage in ("sft", "reward"))
    check_source(policy_source, config, scorer=False)
    check_source(scorer_source, config, scorer=True)
    with pytest.raises(ConfigError, match="it is no reward model"):  # its head would be drawn at random
        check_source(policy_source, config, scorer=True)
    with pytest.raises(ConfigError, match="it is a reward model"):
        check_source(scorer_source, config, scorer=False)


def test_adapters_that_do_not_fit_are_refused(make_config, moved):
    file = adapters(moved) / "adapter_model.safetensors"
    weights = load_file(file)
    name = min(weights)
    weights[name.replace("layers.0", "layers.9")] = weights.pop(name)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="its adapters do not fit the model that they name"):
        policy(make_config, adapters(moved))


def test_new_adapters_by_themselves_are_not_trained_on_adapters(make_config, trained, tmp_path):
    """They would name the base without the adapters that were merged into it."""
    options = ("stage=ppo", f"ppo.actor={adapters(trained)}", f"ppo.reward={trained / 'base' / 'reward'}")
    with pytest.raises(ConfigError, match=r"^lora\.save_merged=False: .*; set lora\.save_merged=true"):
        run(make_config, tmp_path, *options, "lora=r8", "lora.save_merged=false", "critic_lora.save_merged=true")
    with pytest.raises(ConfigError, match=r"^critic_lora\.save_merged=False: "):
        run(make_config, tmp_path, *options, "ppo.critic=actor", "lora=r8", "critic_lora.save_merged=false")
    done = run(make_config, tmp_path, *options, "lora=r8")
    stated = json.loads((done.path / "adapter" / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] is None and not (done.path / "adapter" / BASE).exists()
    AutoModelForCausalLM.from_pretrained(done.model)
