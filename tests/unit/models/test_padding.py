"""A sequence's log-probabilities, values and scores do not depend on its padding."""

import pytest
import torch
from support.tiny_models import policy_engine, scorer_engine

from rlhf.catalog.families import FAMILIES
from rlhf.models.forward import response_logprobs, response_scores, response_values

pytestmark = pytest.mark.rounding

# Every family; and OPT as OPT-350M has it: narrow embedding, layer norm after each block.
SHAPES = {family: (f"model={family.replace('_', '-')}-tiny",) for family in FAMILIES} | {
    "opt-350m's": tuple(
        f"{key}.{change}"
        for key in ("model", "reward_model")
        for change in ("word_embed_proj_dim=32", "do_layer_norm_before=false")
    ),
}


@pytest.fixture(scope="module", params=list(SHAPES))
def engines(request, make_config, tokenizer):
    config = make_config(*SHAPES[request.param])
    policy, scorer = policy_engine(config, tokenizer), scorer_engine(config, tokenizer)
    scorer.module.bias, scorer.module.scale = 0.5, 2.0
    return policy, scorer


def sequences(pad_left, pad_right):
    """Two prompts and responses of unequal length, with padding that holds arbitrary ids."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(2, 500, (n,), generator=generator)  # noqa: E731
    rows = [(draw(7), draw(5)), (draw(4), draw(3))]
    ids, mask = (
        torch.full((2, pad_left + 7 + 5 + pad_right), 1),
        torch.zeros(2, pad_left + 7 + 5 + pad_right, dtype=torch.long),
    )
    for row, (prompt, response) in enumerate(rows):
        start = pad_left + 7 - len(prompt)
        ids[row, start : start + len(prompt) + len(response)] = torch.cat([prompt, response])
        mask[row, start : start + len(prompt) + len(response)] = 1
    return rows, ids, mask, 5 + pad_right


@pytest.mark.parametrize(("pad_left", "pad_right"), [(0, 0), (3, 0), (0, 4), (2, 2)])
@pytest.mark.parametrize("packing", ["packed", "length", "none"])
@torch.no_grad()
def test_padding_changes_nothing(engines, pad_left, pad_right, packing):  # rows 1, 4, 5, 8
    policy, scorer = engines
    rows, ids, mask, width = sequences(pad_left, pad_right)
    logprobs, entropies = response_logprobs(policy, ids, mask, width, 0.7, packing, entropies=True)
    values = response_values(scorer, ids, mask, width, packing)
    scores = response_scores(scorer, ids, mask, packing)
    for row, (prompt, response) in enumerate(rows):
        single = torch.cat([prompt, response])[None]
        everything = torch.ones_like(single)
        length = len(response)
        plain = response_logprobs(policy, single, everything, length, 0.7, "none", entropies=True)
        assert torch.allclose(logprobs[row, :length], plain[0][0], atol=1e-5)
        assert torch.allclose(entropies[row, :length], plain[1][0], atol=1e-5)
        assert torch.allclose(
            values[row, :length], response_values(scorer, single, everything, length, "none")[0], atol=1e-5
        )
        assert torch.allclose(scores[row], response_scores(scorer, single, everything)[0], atol=1e-5)


@torch.no_grad()
def test_log_probabilities_are_those_of_plain_transformers(engines):
    policy, _ = engines
    rows, ids, mask, width = sequences(2, 0)
    logprobs, _ = response_logprobs(policy, ids, mask, width, 1.0)
    prompt, response = rows[0]
    single = torch.cat([prompt, response])[None]
    logits = policy.module(input_ids=single).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits.double(), -1).gather(-1, response[:, None]).squeeze(-1)
    assert torch.allclose(logprobs[0].double(), expected, atol=1e-5)


@torch.no_grad()
def test_the_value_of_an_action_does_not_see_it(engines):
    _, scorer = engines
    _, ids, mask, width = sequences(0, 0)
    values = response_values(scorer, ids, mask, width)
    changed = ids.clone()
    changed[0, -1] += 1  # the last action of the longer row
    assert torch.allclose(values[0], response_values(scorer, changed, mask, width)[0])
    assert not torch.allclose(response_scores(scorer, ids, mask)[0], response_scores(scorer, changed, mask)[0])
