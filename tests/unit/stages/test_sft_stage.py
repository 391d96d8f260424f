import pytest
import torch
from support.tiny_models import policy_engine

from rlhf.data.encoded import Encoded
from rlhf.data.tokens import sequence_batch
from rlhf.stages.sft.train import loss_mask, loss_of, row_losses

ITEMS = [Encoded([5, 6, 7], [8, 9, 1]), Encoded([5], [6, 1])]


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [("completion", [[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]), ("full", [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])],
)
def test_the_loss_covers_what_is_asked(make_config, loss_on, expected):  # row 6
    config = make_config(f"sft.loss_on={loss_on}")
    batch = sequence_batch(ITEMS, pad=0, device=torch.device("cpu"))
    assert loss_mask(batch, config).tolist() == expected


TALK = Encoded([5, 6, 7, 8, 9, 2], [3, 1], loss=[0, 0, 1, 1, 0, 0, 1, 1])


def test_the_loss_may_cover_all_that_the_assistant_says(make_config):
    batch = sequence_batch([TALK, ITEMS[1]], pad=0)
    covered = {name: loss_mask(batch, make_config(f"sft.loss_on={name}")).tolist() for name in ("assistant", "completion")}
    assert covered["assistant"] == [[0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0]]
    assert covered["completion"] == [[0, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0]]


@torch.no_grad()
def test_the_loss_on_all_turns_is_the_same_with_and_without_padding(make_config, tokenizer):
    config = make_config("sft.loss_on=assistant")
    engine, batch = policy_engine(config, tokenizer), sequence_batch([TALK, *ITEMS], pad=0)
    losses = [row_losses(engine, batch, loss_mask(batch, config), packing) for packing in ("none", "packed")]
    ids, said = torch.tensor([TALK.prompt + TALK.response]), torch.tensor(TALK.loss[1:]).bool()
    logprobs = torch.log_softmax(engine.module(input_ids=ids).logits[0, :-1].double(), -1)
    expected = -logprobs.gather(1, ids[0, 1:, None])[:, 0][said].sum()
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=1e-5)
    assert losses[0][0].item() == pytest.approx(expected.item(), rel=1e-5)


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
