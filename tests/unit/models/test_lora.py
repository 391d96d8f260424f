"""Adapters: which layers get them, what is trained, and that they need no second copy of a model."""

import copy

import pytest
import torch
from support.quick import mark_slow
from support.small import SMALL_PPO
from support.tiny_models import built, prompts
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf.config.errors import ConfigError
from rlhf.data.tokens import left_mask
from rlhf.models.forward import response_logprobs, response_scores
from rlhf.models.heads import model_inputs
from rlhf.models.load import load_policy, load_scorer, new_policy, new_scorer, prepare_for_training
from rlhf.models.lora import add_adapters, is_adapter
from rlhf.models.source import Source
from rlhf.runtime.distributed import start

pytestmark = pytest.mark.rounding

# The linear layers of a block, from each family's source in transformers.
LAYERS = {
    "opt": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"},
    "bloom": {"self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "gpt-neox": {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "gptj": {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"},
    "gpt-neo": {
        "attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj", "attn.attention.out_proj", "mlp.c_fc",
        "mlp.c_proj",
    },
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "codegen": {"attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"},
}  # fmt: skip
GATED = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
LAYERS |= dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2"), GATED)
BLOCKS = {
    "opt": "model.decoder.layers", "bloom": "transformer.h", "gpt-neox": "gpt_neox.layers", "gptj": "transformer.h",
    "gpt-neo": "transformer.h", "gpt2": "transformer.h", "codegen": "transformer.h",
}  # fmt: skip


def adapted_layers(model):
    """The layers that got adapters, by name."""
    return {
        name.split(".lora_A.")[0].removeprefix("base_model.model.")
        for name, _ in model.named_parameters()
        if ".lora_A." in name
    }


def expected_layers(family):
    prefix = BLOCKS.get(family, "model.layers")
    return {f"{prefix}.{block}.{layer}" for block in (0, 1) for layer in LAYERS[family]}


HEAD = "classifier.base_model.model.score.modules_to_save.default.weight"


@pytest.mark.parametrize("family", mark_slow(LAYERS, ("opt", "gpt2", "codegen", "llama")))
def test_auto_means_the_linear_layers_of_the_blocks(make_config, tokenizer, family):
    config = make_config(f"model={family}-tiny", "lora=r8")
    start(config)
    policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    scorer = new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0)
    for model, inner, heads in ((policy, policy, set()), (scorer, scorer.classifier, {HEAD})):
        kinds = {name: type(module) for name, module in inner.named_modules()}
        adapted = prepare_for_training(model, config.lora, False, 0)
        layers = adapted_layers(getattr(adapted, "classifier", adapted))
        assert layers == expected_layers(family)
        assert {kinds[name] for name in layers} == {Conv1D if family == "gpt2" else nn.Linear}
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert {name for name in trained if not is_adapter(name)} == heads
        assert len(trained - heads) == 2 * len(layers)


def test_projections_of_a_narrow_embedding_are_left_alone(make_config, tokenizer):
    config = make_config("model.word_embed_proj_dim=32", "model.do_layer_norm_before=false", "lora=r8")
    start(config)
    model = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    assert isinstance(model.model.decoder.project_in, nn.Linear) and isinstance(model.model.decoder.project_out, nn.Linear)
    assert adapted_layers(prepare_for_training(model, config.lora, False, 0)) == expected_layers("opt")


def test_modules_can_be_named_by_the_ends_of_their_names(make_config, tokenizer):
    config = make_config("lora=r8", "lora.target_modules=[self_attn.q_proj,fc2]")
    start(config)
    model = prepare_for_training(new_policy(config.model, config, tokenizer, config.zero, 0.0), config.lora, False, 0)
    assert {name.split(".", 4)[-1] for name in adapted_layers(model)} == {"self_attn.q_proj", "fc2"}


@pytest.mark.parametrize("name", ("qproj", "embed_tokens", "lm_heads", "self_attn", "attention.q_proj"))
def test_a_module_that_is_not_there_is_refused_with_those_that_are(make_config, tokenizer, name):
    config = make_config("lora=r8", f"lora.target_modules=[q_proj,{name}]")
    start(config)
    model = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    with pytest.raises(ConfigError, match=rf"lora\.target_modules=.*{name}") as caught:
        add_adapters(model, config.lora, 0)
    text = str(caught.value)
    assert "\n" not in text and all(there in text for there in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))
    assert "['q_proj'" not in text  # what is there is not reported as missing


def test_a_head_that_is_the_embedding_is_refused(make_config, tokenizer):
    """Adapters on it could not be merged: the embedding would change too."""
    config = make_config("lora=r8", "lora.target_modules=[q_proj,lm_head]")
    start(config)
    with pytest.raises(ConfigError, match=r"lora\.target_modules=.*lm_head"):
        add_adapters(new_policy(config.model, config, tokenizer, config.zero, 0.0), config.lora, 0)


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(make_config, tokenizer):
    config = make_config("lora=r8")
    start(config)
    model = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    ids = torch.arange(2, 20)[None]
    before = model(ids).logits
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(models))  # whatever was drawn before
        models.append(prepare_for_training(copy.deepcopy(model), config.lora, False, seed))
    assert torch.equal(models[0](ids).logits, before)
    first, second, other = ([p for n, p in m.named_parameters() if ".lora_A." in n] for m in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("only", (True, False))
def test_adapters_alone_or_everything_is_trained(make_config, tokenizer, only):
    config = make_config("lora=r8", f"lora.only={str(only).lower()}")
    start(config)
    policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
    scorer = new_scorer(config.reward_model, config, tokenizer, config.zero, 0.0)
    ids = torch.arange(2, 20)[None]
    for model in (policy, scorer):
        adapted = prepare_for_training(model, config.lora, False, 0)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(0.01)
        out = adapted(**model_inputs(adapted, ids, torch.ones_like(ids)))
        (out.logits if hasattr(out, "logits") else out).square().sum().backward()
        moved = {
            name for name, parameter in adapted.named_parameters() if parameter.grad is not None and parameter.grad.any()
        }
        adapters = {name for name, _ in adapted.named_parameters() if is_adapter(name)}
        assert adapters <= moved
        rest = {name for name, _ in adapted.named_parameters() if not is_adapter(name) and ".original_module." not in name}
        head = {name for name in rest if ".score." in name}
        assert len(head) == (model is scorer)
        if only:
            assert moved - adapters == head  # the scorer's head trains
        else:
            # A key's bias adds the same to all logits of a row: its gradient is 0 but for rounding.
            assert {name for name in rest - moved if not name.endswith("k_proj.base_layer.bias")} == set()
            assert {name for name, p in adapted.named_parameters() if not p.requires_grad} <= {
                name for name, _ in adapted.named_parameters() if ".original_module." in name
            }


@pytest.mark.parametrize("only", ("true", "false"))
@pytest.mark.parametrize("model", ("opt-tiny", "gpt2-tiny", "llama-tiny"))
def test_checkpointing_gives_the_same_gradients(make_config, tokenizer, model, only):
    config = make_config("lora=r8", f"lora.only={only}", f"model={model}")
    start(config)
    ids = torch.arange(2, 42).view(2, 20)
    gradients = []
    for checkpointing in (False, True):
        policy = new_policy(config.model, config, tokenizer, config.zero, 0.0)
        adapted = prepare_for_training(policy, config.lora, checkpointing, 0)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_B." in name:
                    parameter.fill_(0.02)
        adapted.train()
        logits = adapted(input_ids=ids, use_cache=False).logits
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any(grad.any() for grad in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-8), name


def weights(engine):
    """The engine's distinct modules and their parameters, without adapters and the heads trained beside them."""
    modules = {id(e.module): e.module for e in (engine.actor, engine.critic, engine.ref, engine.reward)}
    named = {id(p): (n, p) for module in modules.values() for n, p in module.named_parameters()}
    plain = sum(p.numel() for n, p in named.values() if not is_adapter(n) and ".modules_to_save." not in n)
    return len(modules), plain


def sequences(config, tokenizer):
    """Prompts with made-up responses: ids and masks [B, T]."""
    batch = prompts(config, tokenizer)
    generator = torch.Generator().manual_seed(5)
    answers = torch.randint(2, 700, (batch.ids.size(0), 8), generator=generator)
    mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), torch.ones_like(answers)], dim=1)
    return torch.cat([batch.ids, answers], dim=1), mask


def test_reference_and_reward_model_need_no_second_copy(make_config, models, tokenizer):
    config = make_config(*SMALL_PPO, "lora=r8", "ppo.learning_rate=0.01", "ppo.critic_learning_rate=0.01")
    loader, engine, trainer = built(config, models, tokenizer)
    policy = load_policy(Source(models[0], "ppo.actor"), config, config.zero, 0.0).eval()
    judge = load_scorer(Source(models[1], "ppo.reward"), config, config.zero, 0.0).eval()
    copies = sum(p.numel() for model in (policy, judge) for p in model.parameters())
    assert weights(engine) == (2, copies)
    ids, mask = sequences(config, tokenizer)
    with torch.no_grad():
        reference = response_logprobs(policy, ids, mask, 8, 1.0)[0]
        scores = response_scores(judge, ids, mask)

    def check(moved):
        engine.actor.train()
        engine.critic.train()
        with torch.no_grad():
            assert torch.equal(response_logprobs(engine.ref, ids, mask, 8, 1.0)[0], reference)
            assert torch.equal(response_scores(engine.reward, ids, mask), scores)
            assert engine.actor.module.training and engine.critic.module.training  # as they were
            engine.actor.eval()
            engine.critic.eval()
            assert torch.equal(response_logprobs(engine.actor, ids, mask, 8, 1.0)[0], reference) != moved
            assert torch.equal(response_scores(engine.critic, ids, mask), scores) != moved

    check(moved=False)
    for batch in loader:
        out = trainer.generate_experience(batch)
        trainer.train_rlhf(out)
    check(moved=True)
    assert trainer.metrics["kl/sequence"] != 0.0


@pytest.mark.parametrize("change", ("lora.only=false critic_lora.only=true", "critic_lora.only=false", "ppo.critic=actor"))
def test_what_does_not_start_from_frozen_weights_has_its_own_copy(make_config, models, tokenizer, change):
    config = make_config(*SMALL_PPO, "lora=r8", *change.split())
    loader, engine, trainer = built(config, models, tokenizer)
    reference, reward = (False, True) if change.startswith("lora.only=false") else (True, False)
    assert (engine.ref.module is engine.actor.module, engine.reward.module is engine.critic.module) == (reference, reward)
    assert weights(engine)[0] == 3
    frozen = [engine.ref] * (not reference) + [engine.reward] * (not reward)
    before = [[p.detach().clone() for p in e.module.parameters()] for e in frozen]
    trainer.train_rlhf(trainer.generate_experience(next(iter(loader))))
    for e, kept in zip(frozen, before, strict=True):
        assert not any(p.requires_grad for p in e.module.parameters())
        assert not any(is_adapter(name) for name, _ in e.module.named_parameters())
        assert all(torch.equal(p, old) for p, old in zip(e.module.parameters(), kept, strict=True))


def test_with_nothing_shared_there_are_four_models(make_config, models, tokenizer):
    config = make_config(*SMALL_PPO, "lora=r8", "lora.only=false")  # the critic's as the policy's
    _loader, engine, _trainer = built(config, models, tokenizer)
    policy = load_policy(Source(models[0], "ppo.actor"), config, config.zero, 0.0)
    judge = load_scorer(Source(models[1], "ppo.reward"), config, config.zero, 0.0)
    count, plain = weights(engine)
    assert count == 4
    assert plain == 2 * sum(p.numel() for model in (policy, judge) for p in model.parameters())


def test_the_shared_reference_is_itself_under_sharding(make_config, models, tokenizer):
    config = make_config(
        *SMALL_PPO,
        "lora=r8",
        "zero='3'",
        "zero.stage3_param_persistence_threshold=0",
        "critic_zero.stage3_param_persistence_threshold=0",
    )
    loader, engine, trainer = built(config, models, tokenizer)
    assert weights(engine)[0] == 2
    whole = make_config()
    policy = load_policy(Source(models[0], "ppo.actor"), whole, whole.zero, 0.0).eval()
    ids, mask = sequences(config, tokenizer)
    with torch.no_grad():
        reference = response_logprobs(policy, ids, mask, 8, 1.0)[0]
    trainer.train_rlhf(trainer.generate_experience(next(iter(loader))))
    with torch.no_grad():
        assert torch.equal(response_logprobs(engine.ref, ids, mask, 8, 1.0)[0], reference)
