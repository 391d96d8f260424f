"""A reward model's scores of texts are those of reading each text by itself, and its accuracy is the reward stage's."""

import numpy as np
import pytest
import torch
from support.tiny_models import policy_engine, scorer_engine

from rlhf.config.errors import ConfigError
from rlhf.data.records import load_dataset
from rlhf.data.templates import build_template
from rlhf.data.tokenized import DataSource, open_data
from rlhf.evaluation.reward.diagnosis import diagnose
from rlhf.evaluation.reward.scoring import Reader, read_logprobs, read_texts
from rlhf.evaluation.reward.texts import collect_texts, join_readings
from rlhf.planner.batches import batches
from rlhf.stages.reward.train import evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(make_config):
    return make_config("data.demo.heldout_prompts=6", "data.max_prompt_tokens=16", "data.max_response_tokens=24")


@pytest.fixture(scope="module")
def reader(config, tokenizer):
    return Reader("it", scorer_engine(config, tokenizer), build_template(config.data, tokenizer), CPU, tokens=200)


def test_the_figures_of_the_reward_stage(config, tokenizer, reader):
    source = DataSource(config)
    pairs = source.dataset.heldout.comparisons
    texts = collect_texts(pairs)
    found = diagnose(join_readings(texts, [read_texts(reader, texts)]), pairs, gold=source.dataset.gold)
    heldout = open_data(source, tokenizer, "comparisons", "heldout")
    stage = evaluate(reader.model, heldout, 1.0, batches(config, "reward"), tokenizer.pad_token_id)
    for name in ("accuracy", "accuracy_gold", "loss", "margin"):
        assert found.metrics[name].mean == pytest.approx(stage[f"eval/{name}"], abs=1e-5), name
    for name in ("longer", "shorter"):
        assert found.metrics[f"accuracy/chosen={name}"].mean == pytest.approx(stage[f"eval/accuracy_{name}"]), name
    assert found.metrics["ece"].mean == pytest.approx(stage["eval/calibration_error"], abs=1e-5)
    assert found.metrics["accuracy"].se == pytest.approx(stage["eval/accuracy_se"])
    assert found.counts["pairs"] == len(heldout) and found.counts["responses cut"] > 0


def test_each_text_is_read_as_if_it_were_alone(config, reader):
    pairs = load_dataset(config).heldout.comparisons[:9]
    texts = collect_texts(pairs)
    together = read_texts(reader, [*texts, texts[0], ("Why? " * 40, "It does not fit.")])
    alone = [float(read_texts(reader, [text]).scores[0]) for text in texts]
    assert together.scores[:-2].tolist() == pytest.approx(alone, abs=1e-5)
    assert together.scores[-2] == together.scores[0]
    assert together.reasons[-1] == "too long" and np.isnan(together.scores[-1])


def test_log_probabilities_are_the_sum_over_the_response(config, tokenizer):
    engine = policy_engine(config, tokenizer)
    reader = Reader("it", engine, build_template(config.data, tokenizer), CPU, tokens=200)
    texts = collect_texts(load_dataset(config).heldout.comparisons[:3])
    found, tokens = read_logprobs(reader, texts)
    for number, item in enumerate(reader.encode(texts)):
        ids = torch.tensor([item.prompt + item.response])
        logprobs = engine(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)[0, :-1]
        own = logprobs.gather(1, ids[0, 1:, None])[-len(item.response) :].sum()
        assert found[number] == pytest.approx(float(own), abs=1e-3) and tokens[number] == len(item.response)


def test_a_score_that_is_no_number_is_refused(reader, monkeypatch):
    monkeypatch.setattr(Reader, "read_all", lambda self, items, read: np.array([0.0, np.nan]))
    with pytest.raises(ConfigError, match="1 of its 2 scores"):
        read_texts(reader, [("Why?", "So."), ("Why?", "Not so.")])
