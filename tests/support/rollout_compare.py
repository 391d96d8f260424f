"""When two rollouts are the same: equal tokens, but where rounding decides between neighbours."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from rlhf.rollout import hf
from rlhf.rollout.hybrid import decoder
from rlhf.rollout.sampling import next_tokens, restrict

# Log-probabilities of two engines differ by less than this, and boundaries between tokens in the cumulated distribution by
# less than the other.
LOGPROBS, BOUNDARY = 1e-4, 1e-5


@torch.no_grad()
def disagreements(engine, prompts, numbers, found, other, rollout, eos):
    """What differs between two rollouts without penalties or stop texts, beyond rounding, as text; none if nothing does.

    Where two rows part, the number that was drawn must lie within BOUNDARY of the boundary between the two tokens in the
    cumulated distribution, or, if the likeliest token is taken, their log-probabilities must be as near. Until then their
    log-probabilities are the same, and rows that do not part end alike.
    """
    problems = []
    for row in range(len(prompts.samples)):
        ends = int(found.lengths[row]), int(other.lengths[row])
        one, two = found.tokens[row, : ends[0]].tolist(), other.tokens[row, : ends[1]].tolist()
        shared = next((place for place, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), min(ends))
        apart = (found.logprobs[row, :shared] - other.logprobs[row, :shared]).abs()
        if shared and not float(apart.max()) <= LOGPROBS:
            problems.append(f"row {row}: log-probabilities differ by {float(apart.max()):.2g}")
        if one == two:
            if bool(found.ended[row]) != bool(other.ended[row]):
                problems.append(f"row {row}: one ended, the other did not")
            continue
        if shared == min(ends):
            problems.append(f"row {row}: {ends[0]} and {ends[1]} tokens of the same")
            continue
        gap = distance(engine, prompts, row, one, two, shared, numbers, rollout, eos)
        if gap > BOUNDARY:
            problems.append(f"row {row}, step {shared}: {one[shared]} and {two[shared]}, {gap:.2g} from rounding")
    return problems


def distance(engine, prompts, row, one, two, step, numbers, rollout, eos):
    """How far the choice between two tokens was from the other one."""
    prompt = prompts.ids[row, prompts.ids.size(1) - int(prompts.lengths[row]) :].tolist()
    ids = torch.tensor([prompt + one[:step]], device=prompts.ids.device)
    allowed = torch.log_softmax(engine.module(input_ids=ids).logits[:, -1].float() / rollout.temperature, -1)
    if rollout.fixed_length or step < rollout.min_new_tokens:
        allowed[:, eos] = -torch.inf
    first, second = sorted((one[step], two[step]))
    if not rollout.do_sample:
        return abs(float(allowed[0, first] - allowed[0, second]))
    cumulated = torch.softmax(restrict(allowed, rollout.top_k, rollout.top_p), -1).double().cumsum(-1)[0]
    drawn = float(numbers[row, step]) * float(cumulated[-1])
    return min(abs(float(cumulated[token]) - drawn) for token in (first, second - 1))


@contextmanager
def distances() -> Iterator[list[float]]:
    """Note how near each choice of a token was to another one meanwhile: the distance of the number drawn from a boundary
    of the cumulated distribution, or of the two likeliest tokens. Where passes over several ranks are compared, and none
    can look again by itself, a test of equal tokens shows by it that rounding decides none of them."""
    noted: list[float] = []

    def watch(logits, uniforms, rollout, *given, **named):
        wide = logits.double() / rollout.temperature
        if rollout.do_sample:
            bounds = torch.softmax(wide, -1).cumsum(-1)
            noted.append(float((bounds[:, :-1] - uniforms.double()[:, None]).abs().min()))
        else:
            noted.append(float(-wide.topk(2).values.diff().max()))
        return next_tokens(logits, uniforms, rollout, *given, **named)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (hf, decoder):
            patch.setattr(module, "next_tokens", watch)
        yield noted
