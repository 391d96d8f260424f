"""When two rollouts are the same: equal tokens, but where rounding decides between neighbours."""

import torch

from rlhf.rollout.sampling import restrict


@torch.no_grad()
def disagreements(engine, prompts, numbers, found, other, rollout, eos, tolerance=1e-5):
    """What differs between two rollouts without penalties or stop texts, beyond rounding, as text; none if nothing does.

    Where two rows part, the number that was drawn must lie within `tolerance` of the boundary between the two tokens in the
    cumulated distribution, or, if the likeliest token is taken, their log-probabilities must be as near.
    """
    problems = []
    for row in range(len(prompts.samples)):
        ends = int(found.lengths[row]), int(other.lengths[row])
        one, two = found.tokens[row, : ends[0]].tolist(), other.tokens[row, : ends[1]].tolist()
        if one == two:
            continue
        step = next(place for place, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1])
        prompt = prompts.ids[row, prompts.ids.size(1) - int(prompts.lengths[row]) :].tolist()
        ids = torch.tensor([prompt + one[:step]], device=prompts.ids.device)
        allowed = torch.log_softmax(engine.module(input_ids=ids).logits[:, -1].float() / rollout.temperature, -1)
        if rollout.fixed_length or step < rollout.min_new_tokens:
            allowed[:, eos] = -torch.inf
        first, second = sorted((one[step], two[step]))
        if rollout.do_sample:
            cumulated = torch.softmax(restrict(allowed, rollout.top_k, rollout.top_p), -1).double().cumsum(-1)[0]
            drawn = float(numbers[row, step]) * float(cumulated[-1])
            gap = min(abs(float(cumulated[token]) - drawn) for token in (first, second - 1))
        else:
            gap = abs(float(allowed[0, first] - allowed[0, second]))
        if gap > tolerance:
            problems.append(f"row {row}, step {step}: {one[step]} and {two[step]}, {gap:.2g} from rounding")
    return problems
