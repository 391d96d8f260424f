"""A model that is trained from quantized weights is saved as the plain model that it is; quantized weights that cannot be
unpacked are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.gguf_files import write_gguf
from support.small import SMALL_DEMO
from support.tiny_models import save_models
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config.errors import ConfigError
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.launch.worker import run_rank
from rlhf.models.load import load_policy, new_policy
from rlhf.models.preflight import check_source
from rlhf.models.source import Source, fill_shapes
from rlhf.runtime.distributed import start

SMALL = (*SMALL_DEMO, "sft.max_steps=2", "reward.max_steps=1", "data.max_prompt_tokens=96")


@pytest.fixture(scope="module")
def quantized(make_config, tokenizer, tmp_path_factory):
    """A directory with a tiny Llama of 8 bits a weight."""
    pytest.importorskip("gguf")
    config = make_config("model=llama-tiny")
    start(config)
    place = tmp_path_factory.mktemp("gguf")
    write_gguf(new_policy(config.model, config, tokenizer, config.zero, 0.0), tokenizer, place / "tiny.gguf", "Q8_0")
    return place


@pytest.mark.parametrize(("stage", "dtype"), (("sft", "fp32"), ("sft", "bf16"), ("reward", "fp32")))
def test_what_is_trained_from_a_gguf_file_is_a_plain_model(make_config, quantized, tmp_path, stage, dtype):
    model = ("model=local", f"model.path={quantized}", "model.gguf_file=tiny.gguf")
    config = make_config(*SMALL, *model, f"precision={dtype}")
    config.output_root = str(tmp_path)
    config = fill_shapes(config)
    node = next(node for node in build_graph(config) if node.stage == stage)
    run_rank(write_spec(node, config))
    model = node.directory.model
    written = json.loads((model / "config.json").read_text())
    assert not {name for name in written if "quant" in name}
    assert written["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    kind = AutoModelForCausalLM if stage == "sft" else AutoModelForSequenceClassification
    again, report = kind.from_pretrained(model, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    assert next(again.parameters()).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    again.save_pretrained(tmp_path / "again")
    saved, copied = (load_file(place / "model.safetensors") for place in (model, tmp_path / "again"))
    assert all(torch.equal(weight, copied[name]) for name, weight in saved.items())
    assert train_once(again, tmp_path / "trainer") > 0


def train_once(model, directory):
    """How many weights transformers' Trainer changes in a step."""
    from transformers import Trainer, TrainingArguments

    ids = torch.arange(4, 20)
    labels = {"labels": ids} if "CausalLM" in type(model).__name__ else {"labels": torch.tensor(1.0)}
    if "Classification" in type(model).__name__:
        model.config.problem_type = "regression"
    before = [parameter.detach().clone() for parameter in model.parameters()]
    arguments = TrainingArguments(
        str(directory), max_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True, save_strategy="no",
        learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=[{"input_ids": ids, **labels}]).train()
    return sum(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_gguf_file_is_unpacked_even_where_packed_weights_could_be_used(make_config, quantized, monkeypatch):
    """On a GPU with the kernels for it, transformers would keep the file's blocks."""
    gguf = pytest.importorskip("transformers.quantizers.quantizer_gguf")
    monkeypatch.setattr(gguf, "get_gguf_kernel", object)
    config = make_config("model=llama-tiny")
    source = Source(str(quantized), "model.path", gguf_file="tiny.gguf")
    model = load_policy(source, config, config.zero, 0.0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not getattr(model, "is_quantized", False) and not hasattr(model, "hf_quantizer")
    assert not list(model.buffers()) or all("weight" not in name for name, _ in model.named_buffers())


METHODS = (
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fp8"},
    {"quant_method": "mxfp4"},
)


@pytest.fixture
def stating(make_config, tokenizer, tmp_path):
    """A function that gives a model on disk whose config.json states a quantization."""
    actor, _ = save_models(make_config(), tokenizer, tmp_path)

    def make(stated):
        file = tmp_path / "actor" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": stated}))
        return Source(actor, "model.path")

    return make


@pytest.mark.parametrize("stated", METHODS, ids=lambda stated: stated["quant_method"])
@pytest.mark.parametrize("zero", ("0", "3"))
def test_quantized_weights_are_refused(make_config, stating, stated, zero):
    """Sharded loading would take the packed numbers for the weights."""
    config, source = make_config(f"zero='{zero}'"), stating(stated)
    for use in (lambda: check_source(source, config, scorer=False), lambda: load_policy(source, config, config.zero, 0.0)):
        with pytest.raises(ConfigError, match=rf"^model\.path=.*quantized \({stated['quant_method']}\)"):
            use()


def test_plain_weights_that_are_called_gguf_are_taken_for_plain(make_config, stating):
    """Earlier versions of this program saved such models."""
    config, source = make_config(), stating({"quant_method": "gguf"})
    check_source(source, config, scorer=False)
    assert not hasattr(load_policy(source, config, config.zero, 0.0).config, "quantization_config")
