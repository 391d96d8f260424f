"""The model card: its code runs as it is printed, and gives what this package gives; the hub can read its header."""

import contextlib
import io
import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from support.tiny_models import policy_engine, scorer_engine
from support.tiny_tokenizers import CHATML, byte_level

from rlhf.data.templates import build_template
from rlhf.engine.save import save_model
from rlhf.experiment.spec import Spec
from rlhf.models.heads import model_inputs
from rlhf.stages.card import write_model_card
from rlhf.stages.card_usage import ANSWER, QUESTION


@pytest.fixture
def write(tmp_path, make_config):
    """`write(stage, name, engine, tokenizer, config, inputs, metrics)`: the card of a model, saved beside it."""

    def make(stage, name, engine, tokenizer, config, inputs=None, metrics=None):
        spec = Spec(stage, "a" * 64, str(tmp_path / f"{stage}-{'a' * 12}"), inputs or {}, config, "", [])
        context = SimpleNamespace(spec=spec, tracker=SimpleNamespace(seconds=7200.0))
        text = write_model_card(context, name, engine, tokenizer, metrics or {})
        save_model(engine, tokenizer, config.lora, tmp_path / "model", text)
        return text

    return make


def run_example(text, directory, monkeypatch):
    """Run the first block of Python of a card in the model's directory; returns what it prints."""
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(directory)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "the card", "exec"), {})
    return printed.getvalue()


TEMPLATES = (("plain", None), ("chat", CHATML))


@pytest.mark.parametrize(("template", "jinja"), TEMPLATES)
def test_the_example_of_a_policy_answers_as_the_policy_was_trained(
    write, make_config, tokenizer, tmp_path, monkeypatch, template, jinja
):
    config = make_config(f"data.template={template}", "rollout.max_new_tokens=5", "model.vocab_size=768")
    tokenizer = byte_level(jinja) if jinja else tokenizer
    trained = build_template(config.data, tokenizer)
    engine = policy_engine(config, tokenizer)
    card = write("ppo", "ppo", engine, tokenizer, config)
    printed = run_example(card, tmp_path / "model", monkeypatch)
    ids = torch.tensor([trained.encode_prompt(QUESTION)])
    expected = engine.module.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=list(trained.end_ids))
    assert printed == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True) + "\n"
    assert repr(trained.render_prompt(QUESTION)) in card
    assert "temperature 1" in card and "reward_scale" not in card


@pytest.mark.parametrize(
    ("template", "jinja", "model", "bias", "scale"),
    ((*TEMPLATES[0], "codegen-tiny", 0.25, 2.0), (*TEMPLATES[1], "opt-tiny", 0.5, None)),
)
def test_the_example_of_a_scorer_scores_as_it_was_trained(
    write, make_config, tokenizer, tmp_path, monkeypatch, template, jinja, model, bias, scale
):
    config = make_config(f"model={model}", f"data.template={template}", "reward_model.vocab_size=768")
    tokenizer = byte_level(jinja) if jinja else tokenizer
    ids = torch.tensor([build_template(config.data, tokenizer).encode_whole(QUESTION, ANSWER)])
    engine = scorer_engine(config, tokenizer)
    engine.module.config.reward_bias = engine.module.bias = bias
    if scale is not None:
        engine.module.config.reward_scale = engine.module.scale = scale
    card = write("reward", "reward", engine, tokenizer, config)
    with torch.no_grad():
        expected = engine.module(**model_inputs(engine.module, ids, torch.ones_like(ids)))[0, -1]
    assert float(run_example(card, tmp_path / "model", monkeypatch)) == pytest.approx(float(expected), abs=1e-5)
    assert "reward_bias" in card and ("reward_scale" in card) == (scale is not None)
    assert ("classifier_class" in card) == (model == "codegen-tiny")


def test_the_header_and_the_tables_say_what_is_known(write, make_config, tokenizer, tmp_path):
    base = tmp_path / "snapshot"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: opt\n---\n# OPT\n")
    config = make_config("data=hh-rlhf", f"output_root={tmp_path}", "hardware.price_per_gpu_hour=2")
    earlier = make_config("data=files", "data.files.train=/home/me/secret/train.jsonl", f"output_root={tmp_path}")
    earlier.model.path = str(base)
    sft = tmp_path / "stages" / "sft-bbbbbbbbbbbb"
    sft.mkdir(parents=True)
    spec = Spec("sft", "b" * 64, str(sft), {}, earlier, "", [])
    (sft / "spec.json").write_text(json.dumps(asdict(spec)))
    build_template(config.data, tokenizer)
    metrics = {"eval/gold": 1.25, "eval/gold_se": 0.05}
    text = write("ppo", "ppo", policy_engine(config, tokenizer), tokenizer, config, {"actor": str(sft / "model")}, metrics)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.datasets) == (
        "transformers",
        "text-generation",
        ["Anthropic/hh-rlhf"],
    )
    assert (data.license, data.license_name, data.base_model) == ("other", "opt", None)
    assert {"rlhf", "ppo", "opt"} <= set(data.tags)
    assert "| data of sft | `train.jsonl` | not known |" in text and "/home/me" not in text
    assert "| data of ppo | [Anthropic/hh-rlhf](https://huggingface.co/datasets/Anthropic/hh-rlhf) | mit |" in text
    assert "actor: `sft-bbbbbbbbbbbb`" in text and "1.25 ± 0.05" in text and "$4.00 at $2 a device and hour" in text
    assert f"ppo.kl_coef: {config.ppo.kl_coef}" in text and "output_root" not in text


def test_what_is_not_known_is_not_guessed(write, make_config, tokenizer, tmp_path, monkeypatch):
    config = make_config("data.files.train=a.jsonl", "data.source=files")
    config.model.path = "facebook/opt-1.3b"
    engine = policy_engine(make_config(), tokenizer)
    data = ModelCard(write("sft", "sft", engine, tokenizer, config)).data  # neither in the cache nor within reach
    assert (data.license, data.base_model, data.datasets) == (None, None, None)
    monkeypatch.setattr(
        "rlhf.stages.card.find_file", lambda path, name, *_, **__: tmp_path if name == "config.json" else None
    )
    text = write("sft", "sft", engine, tokenizer, config)
    assert (ModelCard(text).data.license, ModelCard(text).data.base_model) == (None, "facebook/opt-1.3b")
    assert "| base model | [facebook/opt-1.3b](https://huggingface.co/facebook/opt-1.3b) | not known |" in text
