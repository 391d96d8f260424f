"""Families whose layers may see the last tokens alone: sequences longer than the window, against plain transformers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.quick import mark_slow
from support.rollout_compare import disagreements
from support.tiny_models import generate
from transformers import AutoModelForCausalLM

from rlhf.catalog.sampler import paged_families
from rlhf.data.tokens import left_mask, prompt_batch, right_mask
from rlhf.engine.zero import frozen_engine
from rlhf.models.attention import extend_attention, takes_packed
from rlhf.models.families import build_hf_config
from rlhf.models.forward import response_logprobs, response_scores, response_values
from rlhf.models.heads import ScalarHeadModel, classifier_class
from rlhf.rollout.hybrid.decoder import SLOTS, Decoder
from rlhf.runtime.distributed import start

pytestmark = pytest.mark.rounding

WINDOW, NEW = 20, 40
# What a configuration says of its window. Other families have none.
HALF = {"use_sliding_window": True, "max_window_layers": 1}
WINDOWS = {"gpt-neo": {}, "gemma2": {}, "mistral": {}, "qwen2": HALF, "qwen3": HALF}
LENGTHS = (45, 3, 28, 17, 39, 45)
LIMITS = (NEW, 30, 4, 36, 2, 1)


def settings_for(family, config, window=WINDOW, **changes):
    """A small configuration with a window; weights that tell tokens apart."""
    known = build_hf_config(config.model).to_dict() | WINDOWS[family] | {"initializer_range": 0.1} | changes
    known["window_size" if family == "gpt-neo" else "sliding_window"] = window
    known.pop("layer_types", None)  # which follow from the rest
    return type(build_hf_config(config.model))(**known)


@pytest.fixture(scope="module", params=WINDOWS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def config(make_config, family):
    return make_config(
        f"model={family}-tiny", "model.num_hidden_layers=2", f"rollout.max_new_tokens={NEW}", "rollout.temperature=0.7"
    )


@pytest.fixture(scope="module")
def pair(family, config):
    """The same weights as plain transformers has them, with attention written out, and as a rollout does."""
    return pair_of(settings_for(family, config), config)


def pair_of(settings, config):
    start(config)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(settings), attn_implementation="eager").eval()
    ours = AutoModelForCausalLM.from_config(copy.deepcopy(settings))
    ours.load_state_dict(plain.state_dict())
    extend_attention(ours)
    return plain, frozen_engine(ours, config, config.zero)


def batch_of(lengths, limits=None):
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 500, length).tolist() for length in lengths]
    batch = prompt_batch(ids, list(range(len(ids))), 0, torch.device("cpu"))
    numbers = generator.random((len(ids), NEW), dtype=np.float32)
    return replace(batch, limits=None if limits is None else torch.tensor(limits)), numbers


@torch.no_grad()
def plain_logprobs(plain, prompts, responses, temperature):
    """Log-probabilities of each response by one pass over it alone, without padding or cache."""
    found = torch.zeros_like(responses.logprobs)
    for row, length in enumerate(responses.lengths.tolist()):
        prompt = prompts.ids[row, prompts.ids.size(1) - int(prompts.lengths[row]) :]
        ids = torch.cat([prompt, responses.tokens[row, :length]])
        logprobs = torch.log_softmax(plain(ids[None], use_cache=False).logits[0].float() / temperature, -1)
        found[row, :length] = logprobs[-length - 1 : -1].gather(1, ids[-length:, None]).squeeze(1)
    return found


@torch.no_grad()
def test_the_window_matters(family, config, pair):
    """Else the tests below would show nothing."""
    plain, _ = pair
    wide = AutoModelForCausalLM.from_config(settings_for(family, config, window=1000), attn_implementation="eager").eval()
    wide.load_state_dict(plain.state_dict())
    ids = torch.randint(5, 500, (1, max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    same = torch.isclose(plain(ids).logits, wide(ids).logits, atol=1e-4).all(-1)[0]
    assert same.tolist() == [place < WINDOW for place in range(max(LENGTHS))]


@pytest.mark.parametrize("slots", [SLOTS["cpu"], SLOTS["cuda"]])
@pytest.mark.parametrize("sampled", mark_slow([True, False], [True]))
def test_rollouts_beyond_the_window(config, pair, tokenizer, monkeypatch, slots, sampled):
    """Rows end at different steps, so that those left move to the front, and the cache is read up to several ends."""
    plain, engine = pair
    monkeypatch.setitem(SLOTS, "cpu", slots)
    kinds, step = set(), Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, kind: (kinds.add((kind.rows, kind.slots)), step(self, kind)))
    batch, numbers = batch_of(LENGTHS, LIMITS)
    rollout = replace(config.rollout, do_sample=sampled, release_cache=True)
    found = generate(engine, batch, numbers, tokenizer, rollout)
    assert len({rows for rows, _ in kinds}) > 1 and {end for _, end in kinds} == ({64, 96} if slots == 32 else {128})
    other = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
    assert disagreements(engine, batch, numbers, found, other, rollout, tokenizer.eos_token_id) == []
    for made in (found, other):
        mask = right_mask(made.lengths, made.tokens.size(1))
        right = plain_logprobs(plain, batch, made, rollout.temperature)
        torch.testing.assert_close(made.logprobs * mask, right, atol=2e-5, rtol=1e-4)


def test_continuous_batching_beyond_the_window(config, family, pair, tokenizer):
    if family.replace("-", "_") not in paged_families():
        pytest.skip(f"continuous batching does not serve a {family}, and says so")
    plain, engine = pair
    batch, numbers = batch_of(LENGTHS)
    rollout = replace(config.rollout, engine="paged")
    found = generate(engine, batch, numbers, tokenizer, rollout)
    other = generate(engine, batch, numbers, tokenizer, replace(rollout, engine="hf"))
    assert disagreements(engine, batch, numbers, found, other, rollout, tokenizer.eos_token_id) == []
    right = plain_logprobs(plain, batch, found, rollout.temperature)
    torch.testing.assert_close(found.logprobs, right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("packing", mark_slow(["packed", "length", "none"], ["packed"]))
def test_scoring_and_training_beyond_the_window(family, config, pair, tokenizer, packing):
    plain, engine = pair
    batch, numbers = batch_of(LENGTHS, LIMITS)
    responses = generate(engine, batch, numbers, tokenizer, config.rollout)
    ids = torch.cat([batch.ids, responses.tokens], 1)
    actions = right_mask(responses.lengths, responses.tokens.size(1))
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], 1)
    # An actor that learns, and its gradients.
    ours = copy.deepcopy(engine.module).train().requires_grad_(True)
    assert takes_packed(ours)
    found, _ = response_logprobs(ours, ids, mask, NEW, 0.7, packing)
    right = plain_logprobs(plain, batch, responses, 0.7)
    torch.testing.assert_close(found * actions, right, atol=2e-5, rtol=1e-4)
    weights = torch.randn(actions.shape, generator=torch.Generator().manual_seed(1)) * actions
    gradients = []
    for model in (ours, copy.deepcopy(plain).train()):
        logprobs = found if model is ours else response_logprobs(model, ids, mask, NEW, 0.7, "none")[0]
        (logprobs * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()
    # A critic and a reward model, by what a plain one gives each sequence alone.
    settings = settings_for(family, config, num_labels=1, pad_token_id=0)
    torch.manual_seed(1)
    judge = ScalarHeadModel(classifier_class(settings)._from_config(copy.deepcopy(settings), attn_implementation="eager"))
    expected = []
    with torch.no_grad():
        for row in range(len(ids)):
            real = ids[row, mask[row] == 1][None]
            expected.append(judge(real, torch.ones_like(real))[0])
        extend_attention(judge.classifier)
        values, scores = response_values(judge, ids, mask, NEW, packing), response_scores(judge, ids, mask, packing)
    for row, length in enumerate(responses.lengths.tolist()):
        torch.testing.assert_close(values[row, :length], expected[row][-length - 1 : -1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(scores[row], expected[row][-1], atol=2e-5, rtol=1e-4)


def test_gpt_neo_beyond_its_own_256_tokens_on_a_gpus_buckets(make_config, tokenizer, monkeypatch):
    """As it is used: the family's window, and the default engine."""
    config = make_config("model=gpt-neo-tiny", "model.max_position_embeddings=512", f"rollout.max_new_tokens={NEW}")
    plain, engine = pair_of(settings_for("gpt-neo", config, window=256), config)
    monkeypatch.setitem(SLOTS, "cpu", SLOTS["cuda"])
    batch, numbers = batch_of((350, 240, 225))
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    right = plain_logprobs(plain, batch, found, 1.0)
    torch.testing.assert_close(found.logprobs, right, atol=2e-5, rtol=1e-4)
