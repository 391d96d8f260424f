"""Saved models, read back by plain transformers and PEFT."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.tiny_models import policy_engine, save_models, scorer_engine
from support.tiny_tokenizers import CHATML, byte_level
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.data.templates import build_template
from rlhf.engine import save
from rlhf.engine.save import save_model, whole_weight
from rlhf.engine.zero import TrainingSpec, training_engine
from rlhf.models.heads import classifier_class, model_inputs
from rlhf.models.load import load_policy, load_scorer, new_policy, new_scorer
from rlhf.models.lora import is_adapter
from rlhf.models.source import Source
from rlhf.models.tokenizer import have_same_vocabulary
from rlhf.runtime.distributed import start

PLAN = Batches(ranks=1, per_rank=1, micro=1, accumulation=1)
IDS = torch.arange(2, 26).view(2, 12)
SHARDED = ("zero='3'", "zero.stage3_param_persistence_threshold=0")


def randomise(model):
    """Give every weight, biases and norms too, values of its own, so that none can stand in for another."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def stored(directory):
    """Every tensor of a directory's safetensors files, by name."""
    weights = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                assert name not in weights
                weights[name] = opened.get_tensor(name)
    return weights


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_plain_generate_ends_where_a_turn_ends(make_config, tmp_path):
    """In a chat template it is another token than end-of-text."""
    config, chat = make_config("model.vocab_size=400", "data.template=chat"), byte_level(CHATML)
    save_model(policy_engine(config, chat), chat, config.lora, tmp_path / "model", "")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.generation_config.eos_token_id == [*build_template(config.data, chat).end_ids]
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == CHATML


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def outputs(scorer):
    scorer.eval()
    with torch.no_grad():
        return scorer(**model_inputs(scorer, IDS, torch.ones_like(IDS)))


def scores(classifier):
    """transformers' classifier reads each row's last token."""
    return logits(classifier).squeeze(-1)


@pytest.mark.parametrize("dtype", ("fp32", "bf16"))
@pytest.mark.parametrize("model", ("opt-tiny", "gptj-tiny", "gpt2-tiny"))
def test_plain_transformers_loads_a_policy_bit_for_bit(make_config, tokenizer, tmp_path, model, dtype):
    config = make_config(f"model={model}", f"precision={dtype}")
    engine = policy_engine(config, tokenizer)
    randomise(engine.module)
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "a card")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    assert same(engine.module.state_dict(), again.state_dict())
    tied = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert tied == (model != "gptj-tiny")
    assert torch.equal(logits(engine.module), logits(again))
    assert have_same_vocabulary(AutoTokenizer.from_pretrained(tmp_path / "model"), tokenizer)
    assert (tmp_path / "model" / "README.md").read_text() == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("model", ("opt-tiny", "gptj-tiny", "gpt2-tiny"))
def test_plain_transformers_loads_a_scorer_bit_for_bit(make_config, tokenizer, tmp_path, model):
    config = make_config(f"model={model}")
    engine = scorer_engine(config, tokenizer)
    randomise(engine.module)
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    again, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.num_labels == 1
    assert same(engine.module.classifier.state_dict(), again.state_dict())
    assert torch.allclose(outputs(engine.module)[:, -1], scores(again), atol=1e-6)


def test_a_model_of_several_files_has_an_index(make_config, tokenizer, tmp_path, monkeypatch):
    config = make_config()
    engine = policy_engine(config, tokenizer)
    randomise(engine.module)
    monkeypatch.setattr(save, "FILE_BYTES", 100_000)
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 3
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    for file in files:
        weights = load_file(file)
        assert {name for name, place in index.items() if place == file.name} == set(weights)
        assert len(weights) == 1 or sum(weight.nbytes for weight in weights.values()) <= 100_000
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert same(engine.module.state_dict(), again.state_dict())


@pytest.mark.parametrize("limit", (2**31, 100_000))
@pytest.mark.parametrize("engine_of", (policy_engine, scorer_engine))
def test_a_sharded_model_is_saved_as_a_whole_one_is(make_config, tokenizer, tmp_path, monkeypatch, engine_of, limit):
    monkeypatch.setattr(save, "FILE_BYTES", limit)
    for place, changes in (("whole", ()), ("sharded", SHARDED)):
        config = make_config(*changes)
        engine = engine_of(config, tokenizer)
        assert all(hasattr(p, "ds_id") == bool(changes) for p in engine.module.parameters())
        save_model(engine, tokenizer, config.lora, tmp_path / place, "")
    assert same(stored(tmp_path / "whole"), stored(tmp_path / "sharded"))
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "sharded").iterdir()}
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "sharded" / name).read_bytes(), name


@pytest.mark.parametrize("role", ("policy", "scorer"))
def test_what_was_saved_in_several_files_is_sharded_again(make_config, tokenizer, tmp_path, monkeypatch, role):
    config = make_config()
    engine = (policy_engine if role == "policy" else scorer_engine)(config, tokenizer)
    randomise(engine.module)
    monkeypatch.setattr(save, "FILE_BYTES", 100_000)
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    sharded = make_config(*SHARDED)
    load = load_policy if role == "policy" else load_scorer
    model = load(Source(str(tmp_path / "model"), "ppo.actor"), sharded, sharded.zero, 0.0)
    for parameter, whole in zip(model.parameters(), engine.module.parameters(), strict=True):
        assert torch.equal(whole_weight(parameter), whole)


def test_a_scorer_of_a_family_without_a_classifier(make_config, tokenizer, tmp_path):
    config = make_config("model=codegen-tiny")
    engine = scorer_engine(config, tokenizer)
    randomise(engine.module)
    engine.module.config.reward_bias = 0.5
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    place = tmp_path / "model"

    again = classifier_class(AutoConfig.from_pretrained(place)).from_pretrained(place)
    assert same(engine.module.classifier.state_dict(), again.state_dict())
    assert torch.allclose(outputs(engine.module)[:, -1], scores(again), atol=1e-6)
    body, report = AutoModel.from_pretrained(place, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    body.eval()
    with torch.no_grad():
        hidden = body(IDS).last_hidden_state[:, -1]
    by_hand = hidden @ stored(place)["score.weight"][0]
    assert torch.allclose(by_hand, scores(again), atol=1e-5)
    ours = load_scorer(Source(str(place), "ppo.reward"), config, config.zero, 0.0)
    assert torch.allclose(outputs(ours)[:, -1], by_hand - 0.5, atol=1e-5)


@pytest.mark.parametrize("where", ("in the weights", "at the end"))
def test_what_is_interrupted_leaves_the_older_model(make_config, tokenizer, tmp_path, monkeypatch, where):
    config = make_config()
    engine = policy_engine(config, tokenizer)
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "older")
    older = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    randomise(engine.module)
    calls = []

    def read(parameter):
        calls.append(parameter)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return whole_weight(parameter)

    def write_texts(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "at the end":
            patch.setattr(save, "write_texts", write_texts)
        reader = whole_weight if where == "at the end" else read
        save_model(engine, tokenizer, config.lora, tmp_path / "model", "newer", reader)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == older
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "newer")
    assert (tmp_path / "model" / "README.md").read_text() == "newer"
    assert same(engine.module.state_dict(), AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def adapted(config, model):
    """An engine that trains adapters, which have learned something."""
    import deepspeed

    start(config)
    engine = training_engine(model, config, TrainingSpec(config.sft, PLAN, config.zero, config.lora, 1e-3, 0.0, False))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:  # the adapters, and a scorer's head
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if is_adapter(name) else 1.0))
    return engine


@pytest.fixture(scope="module")
def bases(make_config, tokenizer, tmp_path_factory):
    """Plain models on disk, by family: a policy and a scorer."""
    places = {}
    for model in ("opt-tiny", "gpt2-tiny"):
        config = make_config(f"model={model}")
        places[model] = save_models(config, tokenizer, tmp_path_factory.mktemp(model))
    return places


TARGETS = (("opt-tiny", "auto"), ("opt-tiny", "[q_proj,fc2]"), ("gpt2-tiny", "auto"), ("gpt2-tiny", "[c_proj]"))


@pytest.mark.parametrize(("model", "targets"), TARGETS)
def test_adapters_are_saved_for_peft_and_merged(make_config, tokenizer, tmp_path, bases, model, targets):
    """GPT-2's matrices are transposed, and attn.c_proj is square: merged the wrong way round it would still load."""
    from peft import PeftModel

    config = make_config("lora=r8", f"lora.target_modules={targets}", f"model={model}")
    base = bases[model][0]
    engine = adapted(config, load_policy(Source(base, "model.path"), config, config.zero, 0.0))
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "a card")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected, before = logits(engine.module), logits(plain)
    assert float((expected - before).abs().max()) > 0.1
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected, atol=1e-5)
    again = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert torch.allclose(logits(again), expected, atol=1e-6)
    names = {name.split(".")[-3] for name in stored(tmp_path / "adapter")}
    layers = {
        "opt-tiny": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
        "gpt2-tiny": {"c_attn", "c_proj", "c_fc"},
    }
    assert names == (layers[model] if targets == "auto" else set(targets[1:-1].split(",")))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base and settings["inference_mode"]
    assert settings["fan_in_fan_out"] == (model == "gpt2-tiny")
    assert (tmp_path / "adapter" / "README.md").is_file() and (tmp_path / "adapter" / "tokenizer.json").is_file()
    trained = [parameter.requires_grad for name, parameter in engine.module.named_parameters() if is_adapter(name)]
    assert all(trained) and trained  # saving leaves the model as it was


def test_adapters_on_a_head_of_its_own_are_merged(make_config, tokenizer, tmp_path):
    config = make_config("lora=r8", "lora.target_modules=[q_proj,lm_head]", "model=gptj-tiny")
    engine = adapted(config, new_policy(config.model, config, tokenizer, config.zero, 0.0))
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(logits(merged), logits(engine.module), atol=1e-5)


def test_weights_and_adapters_trained_together_are_both_saved(make_config, tokenizer, tmp_path, bases):
    config = make_config("lora=r8", "lora.only=false")
    engine = adapted(config, load_policy(Source(bases["opt-tiny"][0], "model.path"), config, config.zero, 0.0))
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.allclose(logits(merged), logits(engine.module), rtol=1e-4, atol=1e-3)  # logits of hundreds


@pytest.mark.parametrize("model", ("opt-tiny", "gpt2-tiny"))
def test_a_scorers_adapters_and_head_are_saved_for_peft_and_merged(make_config, tokenizer, tmp_path, bases, model):
    from peft import PeftModel

    config = make_config("lora=r8", f"model={model}")
    base = bases[model][1]
    engine = adapted(config, load_scorer(Source(base, "ppo.reward"), config, config.zero, 0.0))
    save_model(engine, tokenizer, config.lora, tmp_path / "critic", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["critic", "critic-adapter"]
    plain = AutoModelForSequenceClassification.from_pretrained(base)
    expected = outputs(engine.module)[:, -1]
    assert float((expected - scores(plain)).abs().max()) > 0.01
    merged, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.allclose(scores(merged), expected, atol=1e-4)
    again = PeftModel.from_pretrained(plain, tmp_path / "critic-adapter")
    assert torch.allclose(scores(again), expected, atol=1e-4)


@pytest.mark.parametrize("model", ("opt-tiny", "gpt2-tiny"))
def test_sharded_adapters_are_merged_as_whole_ones_are(make_config, tokenizer, tmp_path, bases, model):
    for place, changes in (("whole", ()), ("sharded", SHARDED)):
        config = make_config("lora=r8", f"model={model}", *changes)
        engine = adapted(config, load_policy(Source(bases[model][0], "model.path"), config, config.zero, 0.0))
        save_model(engine, tokenizer, config.lora, tmp_path / place, "")
    assert same(stored(tmp_path / "whole"), stored(tmp_path / "sharded"))
    assert same(stored(tmp_path / "whole-adapter"), stored(tmp_path / "sharded-adapter"))


@pytest.mark.parametrize("changes", ((), SHARDED))
def test_adapters_alone_are_merged_when_they_are_loaded(make_config, tokenizer, tmp_path, bases, changes):
    base = bases["opt-tiny"][0]
    config = make_config("lora=r8", "lora.save_merged=false", f"model.path={base}", *changes)
    engine = adapted(config, new_policy(config.model, config, tokenizer, config.zero, 0.0))
    save_model(engine, tokenizer, config.lora, tmp_path / "model", "a card")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= files
    assert not files & {"config.json", "model.safetensors"}
    assert all(is_adapter(name.replace("weight", "default.weight")) for name in stored(tmp_path / "model"))
    whole = make_config()
    again = load_policy(Source(str(tmp_path / "model"), "ppo.actor"), whole, whole.zero, 0.0)
    assert not any(is_adapter(name) for name, _ in again.named_parameters())
    assert torch.allclose(logits(again), logits(engine.module), atol=1e-5)
    assert float((logits(again) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max()) > 0.1
    with pytest.raises(ConfigError, match=r"ppo\.actor.*sharded"):
        sharded = make_config(*SHARDED)
        load_policy(Source(str(tmp_path / "model"), "ppo.actor"), sharded, sharded.zero, 0.0)


def test_a_scorers_adapters_alone_are_merged_when_they_are_loaded(make_config, tokenizer, tmp_path, bases):
    base = bases["opt-tiny"][0]
    config = make_config("lora=r8", "reward_lora.save_merged=false", f"reward_model.path={base}")
    engine = adapted(config, new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0))
    save_model(engine, tokenizer, config.reward_lora, tmp_path / "model", "")
    assert not (tmp_path / "model" / "config.json").exists()
    whole = make_config()
    again = load_scorer(Source(str(tmp_path / "model"), "ppo.reward"), whole, whole.zero, 0.0)
    assert torch.allclose(outputs(again), outputs(engine.module), atol=1e-4)
