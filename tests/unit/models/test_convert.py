"""DeepSpeed-Chat's reward models give the same scores once they are converted."""

import pickle

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from rlhf.cli.convert_reward import main
from rlhf.data.tokens import right_mask
from rlhf.models.load import load_scorer, new_policy
from rlhf.models.source import Source
from rlhf.runtime.distributed import start


class RewardModel(torch.nn.Module):
    """DeepSpeed-Chat's, as step 2 saves it (training/utils/model/reward_model.py)."""

    def __init__(self, settings):
        super().__init__()
        self.rwtransformer = AutoModel.from_config(settings)
        width = getattr(settings, "word_embed_proj_dim", settings.hidden_size)
        self.v_head = torch.nn.Linear(width, 1, bias=False)

    def forward(self, ids, mask):
        return self.v_head(self.rwtransformer(ids, attention_mask=mask)[0]).squeeze(-1)


@pytest.fixture
def saved(make_config, tokenizer, tmp_path):
    """Makes a directory of step 2 of a family, and returns it with the model."""

    def make(family, rename=lambda name: name):
        config = make_config(f"model={family}-tiny")
        start(config)
        place = tmp_path / "step2"
        new_policy(config.model, config, tokenizer, config.zero, 0.0).save_pretrained(place)
        (place / "model.safetensors").unlink()
        tokenizer.save_pretrained(place)
        model = RewardModel(AutoConfig.from_pretrained(place)).eval()
        torch.save({rename(name): value for name, value in model.state_dict().items()}, place / "pytorch_model.bin")
        return config, place, model

    return make


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_converted_model_gives_the_same_scores(saved, tmp_path, family):
    config, place, model = saved(family, lambda name: name.replace("rwtransformer", "rwtranrsformer"))
    assert main([str(place), str(tmp_path / "new")]) == 0
    scorer = load_scorer(Source(str(tmp_path / "new"), "test"), config, config.zero, 0.0).eval()
    ids, lengths = torch.randint(3, 100, (3, 9)), torch.tensor([9, 4, 7])
    mask = right_mask(lengths, 9)
    with torch.no_grad():
        expected, found = model(ids, mask), scorer(ids, mask)
    last = (torch.arange(3), lengths - 1)
    assert torch.allclose(found[last], expected[last], atol=1e-6)
    assert "score.weight" in load_file(tmp_path / "new" / "model.safetensors")


def test_what_is_no_such_model_is_refused(saved, tmp_path, capsys):
    _, place, _ = saved("gpt2")
    weights = torch.load(place / "pytorch_model.bin", weights_only=True)
    new = str(tmp_path / "new")

    def refused(*words):
        assert main(list(words)) == 2
        return capsys.readouterr().err.replace("\n", "")

    assert "it takes two directories" in refused(str(place))
    assert "there is no such directory" in refused(str(tmp_path / "none"), new)
    assert "it holds something already" in refused(str(place), str(place))
    torch.save({name: value for name, value in weights.items() if "h.1.mlp" not in name}, place / "pytorch_model.bin")
    assert "it lacks transformer.h.1.mlp" in refused(str(place), new)
    torch.save({"lm_head.weight": torch.zeros(1)}, place / "pytorch_model.bin")
    assert "holds no rwtransformer.* and v_head.weight" in refused(str(place), new)
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(print, protocol=2))
    assert "pytorch_model.bin cannot be read" in refused(str(place), new)
