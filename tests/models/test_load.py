import math

import pytest
import torch
from torch import nn

from rlhf.config.errors import ConfigError
from rlhf.models.load import Source, load_policy, load_scorer, new_policy, new_scorer
from rlhf.models.tokenizer import load_tokenizer, same_vocabulary, train_tokenizer


def test_the_same_seed_gives_the_same_weights(make_config, tokenizer):
    weights = [
        new_policy(c.model, c, tokenizer, 0.0).state_dict() for c in map(make_config, ("seed=3", "seed=3", "seed=4"))
    ]
    name = "model.decoder.layers.0.fc1.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_the_head_is_drawn_with_variance_one_over_width_plus_one(make_config, tokenizer):  # row 7
    config = make_config("reward_model.width=1024", "reward_model.embedding=1024", "reward_model.layers=1")
    head = new_scorer(config.reward_model, config, tokenizer, 0.0).classifier.score
    assert head.bias is None
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)


def test_dropout_is_what_the_configuration_says(make_config, tokenizer):  # row 13
    config = make_config()
    assert new_policy(config.model, config, tokenizer, 0.25).config.dropout == 0.25
    settings = new_policy(config.model, config, tokenizer, 0.0).config
    assert (settings.dropout, settings.attention_dropout, settings.layerdrop) == (0.0, 0.0, 0.0)


def test_the_built_in_tokenizer_is_byte_level_and_survives_saving(tokenizer, tmp_path):  # row 3
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = "Human: Wie reinige ich eine Kanne? ☕\n\nAssistant: naïve ünïcode"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), "model.path")
    assert same_vocabulary(tokenizer, again)
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
    with pytest.raises(ConfigError, match=r"model\.path") as caught:
        load_policy(Source(str(tmp_path), "model.path"), make_config(), 0.0)
    assert "\n" not in str(caught.value)


def test_every_dropout_layer_of_a_trained_model_can_be_silenced():
    from rlhf.ppo.engine import without_dropout

    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    without_dropout(model)
    assert model[1].p == 0.0


def test_a_language_model_is_no_reward_model_and_the_other_way_round(make_config, tokenizer, tmp_path):
    config = make_config()
    new_policy(config.model, config, tokenizer, 0.0).save_pretrained(tmp_path / "policy")
    new_scorer(config.reward_model, config, tokenizer, 0.0).classifier.save_pretrained(tmp_path / "scorer")
    with pytest.raises(ConfigError, match=r"ppo\.reward=.*no weights for score"):
        load_scorer(Source(str(tmp_path / "policy"), "ppo.reward"), config, 0.0)
    with pytest.raises(ConfigError, match=r"ppo\.actor=.*reward model"):
        load_policy(Source(str(tmp_path / "scorer"), "ppo.actor"), config, 0.0)


def test_a_model_with_too_few_positions_is_refused(make_config, tokenizer, tmp_path):
    config = make_config("model.positions=64")
    new_policy(config.model, config, tokenizer, 0.0).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="64 positions"):
        load_policy(Source(str(tmp_path), "ppo.actor"), make_config(), 0.0)
