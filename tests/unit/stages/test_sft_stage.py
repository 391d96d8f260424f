import pytest
import torch
from support.tiny_models import policy_engine

from rlhf.data.encoded import Encoded
from rlhf.data.tokens import sequence_batch
from rlhf.stages.sft.train import loss_mask, loss_of

ITEMS = [Encoded([5, 6, 7], [8, 9, 1]), Encoded([5], [6, 1])]


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [("completion", [[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]), ("full", [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])],
)
def test_the_loss_covers_what_is_asked(make_config, loss_on, expected):  # row 6
    config = make_config(f"sft.loss_on={loss_on}")
    batch = sequence_batch(ITEMS, pad=0, device=torch.device("cpu"))
    assert loss_mask(batch, config).tolist() == expected


@torch.no_grad()
def test_the_loss_is_the_negative_log_likelihood_of_the_completion(make_config, tokenizer):
    config = make_config()
    engine = policy_engine(config, tokenizer)
    expected = 0.0
    for item in ITEMS:
        ids = torch.tensor([item.prompt + item.response])
        logprobs = torch.log_softmax(engine.module(input_ids=ids).logits[0].double(), -1)
        start = len(item.prompt)
        expected -= sum(logprobs[start + i - 1, token].item() for i, token in enumerate(item.response))
    batch = sequence_batch(ITEMS, pad=0, device=torch.device("cpu"))
    assert loss_of(engine, batch, config).item() == pytest.approx(expected, rel=1e-5)
