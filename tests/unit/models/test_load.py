import math

import pytest
import torch
from support.quick import mark_slow
from torch import nn

from rlhf.catalog import families
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.engine.zero import frozen_engine, release
from rlhf.models.heads import ScalarHeadModel, model_inputs
from rlhf.models.load import load_policy, load_scorer, new_policy, new_scorer, scorer_with_new_head
from rlhf.models.lora import add_adapters
from rlhf.models.source import Source
from rlhf.models.tokenizer import have_same_vocabulary, load_tokenizer, train_tokenizer
from rlhf.runtime.distributed import start

FAMILIES = [family.replace("_", "-") for family in families.FAMILIES]
IDS = torch.arange(2, 20)[None]


def policy(config: Config, tokenizer, dropout=0.0):
    return new_policy(config.model, config, tokenizer, config.zero, dropout)


def scorer(config: Config, tokenizer, dropout=0.0):
    return new_scorer(config.reward_model, config, tokenizer, config.reward_zero, dropout)


def whole(model):
    """The weights by name, gathered where they are sharded."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def outputs(model):
    """Logits, or a scorer's outputs, of a sequence."""
    found = model(**model_inputs(model, IDS, torch.ones_like(IDS)))
    return getattr(found, "logits", found).detach()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_weights(make_config, tokenizer):
    weights = [policy(c, tokenizer).state_dict() for c in map(make_config, ("seed=3", "seed=3", "seed=4"))]
    name = "model.decoder.layers.0.fc1.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_every_random_matrix_is_another_one(make_config, tokenizer):
    """Each is drawn by its name: not the same numbers in every layer, nor in policy and scorer."""
    config = make_config()
    one, other = policy(config, tokenizer).state_dict(), scorer(config, tokenizer).classifier.state_dict()
    firsts = [weight.flatten()[:8] for name, weight in one.items() if weight.ndim == 2 and name != "lm_head.weight"]
    firsts += [weight.flatten()[:8] for weight in other.values() if weight.ndim == 2]
    assert len({tuple(first.tolist()) for first in firsts}) == len(firsts) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_spread_as_transformers_spreads_them(make_config, tokenizer, family):
    """Matrices about as wide as their configuration says, biases 0, norms the identity; a tied head is tied."""
    from transformers import AutoModelForCausalLM

    config = make_config(f"model={family}-tiny")
    ours = policy(config, tokenizer)
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(ours.config)
    assert ours.lm_head.weight is ours.get_input_embeddings().weight if config.model.tie_word_embeddings else True
    expected = dict(theirs.named_parameters())
    assert dict(ours.named_parameters()).keys() == expected.keys()
    for name, weight in ours.named_parameters():
        if weight.ndim < 2:
            assert torch.equal(weight, expected[name]), name
        else:
            deviation = getattr(ours.config, "init_std", None) or ours.config.initializer_range
            assert weight.std().item() == pytest.approx(deviation, rel=0.1), name
            assert abs(weight.mean().item()) < 0.1 * deviation, name
    assert torch.isfinite(outputs(ours.eval())).all()


@pytest.mark.parametrize("family", mark_slow(FAMILIES, ("opt", "gpt-neo", "llama", "bloom")))
def test_a_sharded_model_has_the_weights_and_the_outputs_of_a_whole_one(make_config, tokenizer, family):
    """Random ones at ZeRO stages 0 and 3: buffers (rotary frequencies, masks) are what they should be too."""
    plain, sharded = (make_config(f"model={family}-tiny", f"zero='{stage}'") for stage in (0, 3))
    start(plain)
    for build in (policy, scorer):
        models = [build(config, tokenizer).eval() for config in (plain, sharded)]
        assert all(hasattr(parameter, "ds_id") for parameter in models[1].parameters())
        assert same(whole(models[0]), whole(models[1]))
        buffers = [dict(model.named_buffers()) for model in models]
        assert buffers[0].keys() == buffers[1].keys()
        assert all(torch.equal(buffer, buffers[1][name]) for name, buffer in buffers[0].items())
        engine = frozen_engine(models[1], sharded, sharded.zero)
        with torch.no_grad():
            assert torch.allclose(outputs(models[0]), outputs(engine), atol=1e-6)
        release(engine)


@pytest.mark.parametrize("family", ["opt", "gpt-neox", "gpt2", "codegen", "llama", "gemma2"])
@pytest.mark.parametrize("stage", [0, 3])
def test_what_was_saved_is_loaded_whole_or_sharded(make_config, tokenizer, tmp_path, family, stage):
    config = make_config(f"model={family}-tiny", f"zero='{stage}'")
    plain = make_config(f"model={family}-tiny")
    start(config)
    actor, reward = policy(plain, tokenizer), scorer(plain, tokenizer)
    actor.save_pretrained(tmp_path / "actor")
    reward.classifier.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "actor")
    where = Source(str(tmp_path / "actor"), "ppo.actor"), Source(str(tmp_path / "reward"), "ppo.reward")
    assert same(whole(load_policy(where[0], config, config.zero, 0.0)), whole(actor))
    assert same(whole(load_scorer(where[1], config, config.zero, 0.0)), whole(reward))
    fresh = whole(scorer_with_new_head(where[0], config, tokenizer, config.zero, 0.0).classifier)
    body = {name.split(".", 1)[-1]: weight for name, weight in whole(actor).items() if "." in name}
    head = fresh.pop("score.weight")
    assert torch.equal(head, whole(reward)["classifier.score.weight"])  # drawn by the seed alone
    assert fresh and all(torch.equal(weight, body[name.split(".", 1)[-1]]) for name, weight in fresh.items())


def test_the_head_is_drawn_with_variance_one_over_width_plus_one(make_config, tokenizer):  # row 7
    config = make_config(
        "reward_model.hidden_size=1024", "reward_model.word_embed_proj_dim=1024", "reward_model.num_hidden_layers=1"
    )
    head = scorer(config, tokenizer).classifier.score
    assert head.bias is None
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)


def test_a_scorer_subtracts_its_bias_and_divides_by_its_scale(make_config, tokenizer):  # row 10
    config = make_config()
    classifier = scorer(config, tokenizer).classifier.eval()
    with torch.no_grad():
        raw = outputs(ScalarHeadModel(classifier))
        classifier.config.reward_bias, classifier.config.reward_scale = 0.5, 4.0
        assert torch.allclose(outputs(ScalarHeadModel(classifier)), (raw - 0.5) / 4.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_what_the_configuration_says(make_config, tokenizer, family):  # row 13
    """Whatever the family calls it: a layer with another probability would be at work unseen."""
    config = make_config(f"model={family}-tiny")
    for build in (policy, scorer):
        for dropout in (0.25, 0.0):
            model = build(config, tokenizer, dropout)
            layers = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
            assert layers <= {dropout}
            stated = {name: value for name, value in model.config.to_dict().items() if "drop" in name}
            assert {value for name, value in stated.items() if name != "layerdrop"} <= {dropout}, stated
            assert not stated.get("layerdrop")
            first, second = (outputs(model.train()) for _ in range(2))
            assert torch.equal(first, second) == (dropout == 0.0)


def test_the_built_in_tokenizer_is_byte_level_and_survives_saving(tokenizer, tmp_path):  # row 3
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = "Human: Wie reinige ich eine Kanne? ☕\n\nAssistant: naïve ünïcode"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), "model.path")
    assert have_same_vocabulary(tokenizer, again)
    assert (again.pad_token_id, again.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_training_a_tokenizer_twice_gives_the_same():
    texts = ["the cat sat on the mat", "the dog sat on the cat"] * 20
    assert train_tokenizer(texts, 300).get_vocab() == train_tokenizer(texts, 300).get_vocab()


def test_a_tokenizer_whose_padding_is_end_of_text_gets_another(tokenizer, tmp_path):  # row 3
    tokenizer.save_pretrained(tmp_path)
    changed = load_tokenizer(str(tmp_path), "model.path")
    changed.pad_token = changed.eos_token
    changed.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), "model.path")
    assert again.pad_token_id != again.eos_token_id


def test_a_directory_without_a_model_is_one_clear_line(make_config, tmp_path):
    config = make_config()
    with pytest.raises(ConfigError, match=r"model\.path") as caught:
        load_policy(Source(str(tmp_path), "model.path"), config, config.zero, 0.0)
    assert "\n" not in str(caught.value)


def test_the_adapters_dropout_can_be_silenced_without_the_models(make_config, tokenizer):
    from rlhf.ppo.engine import without_adapter_dropout

    config = make_config("lora=r8", "lora.dropout=0.2")
    model = add_adapters(policy(config, tokenizer, dropout=0.1), config.lora, 0)
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def probabilities(adapters):
        named = model.named_modules()
        return {m.p for name, m in named if isinstance(m, nn.Dropout) and ("lora_dropout" in name) == adapters}

    assert probabilities(True) == {0.2}
    others = probabilities(False)
    without_adapter_dropout(model)
    without_adapter_dropout(plain)
    assert (probabilities(True), probabilities(False)) == ({0.0}, others)
    assert plain[1].p == 0.5


@pytest.mark.parametrize("stage", [0, 3])
def test_a_language_model_is_no_reward_model_and_the_other_way_round(make_config, tokenizer, tmp_path, stage):
    config, plain = make_config(f"zero='{stage}'"), make_config()
    start(config)
    policy(plain, tokenizer).save_pretrained(tmp_path / "policy")
    scorer(plain, tokenizer).classifier.save_pretrained(tmp_path / "scorer")
    with pytest.raises(ConfigError, match=r"ppo\.reward=.*no weights for score"):
        load_scorer(Source(str(tmp_path / "policy"), "ppo.reward"), config, config.zero, 0.0)
    with pytest.raises(ConfigError, match=r"ppo\.actor=.*reward model"):
        load_policy(Source(str(tmp_path / "scorer"), "ppo.actor"), config, config.zero, 0.0)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_belong_to_another_shape_are_one_clear_line(make_config, tokenizer, tmp_path, stage):
    import json

    config = make_config(f"zero='{stage}'")
    start(config)
    policy(make_config(), tokenizer).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"ffn_dim": 128}))
    with pytest.raises(ConfigError, match=r"^ppo\.actor=") as caught:
        load_policy(Source(str(tmp_path), "ppo.actor"), config, config.zero, 0.0)
    assert "\n" not in str(caught.value)


def test_a_model_with_too_few_positions_is_refused(make_config, tokenizer, tmp_path):
    policy(make_config("model.max_position_embeddings=64"), tokenizer).save_pretrained(tmp_path)
    config = make_config()
    with pytest.raises(ConfigError, match="64 positions"):
        load_policy(Source(str(tmp_path), "ppo.actor"), config, config.zero, 0.0)
