"""Reading comparisons: a step's pairs in forward passes of bounded size, however many answers one prompt has.

The loss of a pair needs the scores of two answers, so the answers of one prompt that do not fit one pass are read twice:
first for their scores, which give the loss and its derivative with respect to each score, then once more to carry that
derivative on to the weights. The gradient is that of a single pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.preferences import center_penalty, pair_loss, plackett_luce_loss, token_wise_loss
from rlhf.data.encoded import Encoded
from rlhf.data.tokens import ComparisonBatch, SequenceBatch, comparison_batch, right_mask
from rlhf.engine.step import accumulate
from rlhf.engine.zero import backward
from rlhf.models.forward import Room, make_room, response_scores
from rlhf.runtime.distributed import maximum, world

# Room for a single answer.
ALONE = Room(1)

Element = list[tuple[Encoded, Encoded]]


@dataclass(frozen=True)
class Objective:
    """What is minimised: the keys of these names in the group `reward`."""

    loss: str = "pairs"
    margin_coef: float = 0.0
    label_smoothing: float = 0.0
    center_coef: float = 0.0


PAIRS = Objective()


@dataclass(frozen=True)
class Reading:
    """What a rank's share of a step came to: the summed loss, each pair's margin, and the lengths of the answers."""

    loss: float
    margins: Tensor
    lengths: list[int]


@dataclass
class Pass:
    """A forward pass with a gradient: the answers it reads, the loss of their scores [B], and the seed of its dropout, if
    it reads what was read before."""

    rows: SequenceBatch
    loss: Callable[[Tensor], Tensor]
    seed: int | None = None


def train_on_comparisons(
    engine: Any,
    elements: list[Element],
    answers: int,
    count: float,
    pad: int,
    packing: str = "packed",
    objective: Objective = PAIRS,
    tokens: int | None = None,
) -> Reading:
    """Accumulate the gradient of this rank's share of a step, `count` comparisons over all ranks, in forward passes of at
    most `answers` answers, or of so many `tokens`. All ranks make equally many passes, since under ZeRO they make each of
    them together."""
    if packing != "none":  # answers of about one length together
        elements = sorted(elements, key=lambda element: -count_tokens(element))
    room = make_room(answers, tokens, packing, engine, least=2)  # the two of a pair
    batches = [comparison_batch(part, pad, engine.device) for part in parts(elements, room)]
    pieces = [split(batch.rows, room) for batch in batches]
    seeds = [draw_seed() if len(found) > 1 else None for found in pieces]
    known = first_readings(engine, batches, pieces, seeds, packing)
    results: list[tuple[Tensor, Tensor]] = []
    passes: list[Pass] = []
    for batch, found, seed, scores in zip(batches, pieces, seeds, known, strict=True):
        if scores is None:
            passes.append(Pass(batch.rows, whole_loss(batch, objective, results)))
        else:
            slopes = derivative(batch, scores, objective, results).split([len(rows.lengths) for rows in found])
            for number, (rows, slope) in enumerate(zip(found, slopes, strict=True)):
                passes.append(Pass(rows, backward_carrying(slope), None if seed is None else seed + number))
    idle = int(maximum(len(passes))) - len(passes) if world() > 1 else 0
    passes += [Pass(split(batches[0].rows, ALONE)[0], lambda scores: 0.0 * scores.sum())] * idle
    for number, made in enumerate(passes, start=1):
        engine.set_gradient_accumulation_boundary(number == len(passes))
        if made.seed is not None:
            torch.manual_seed(made.seed)
        read = read_outputs if objective.loss == "token_wise" else read_scores
        backward(engine, made.loss(read(engine, made.rows, packing)), count)
        accumulate(engine)
    lengths = [length for batch in batches for length in batch.rows.lengths.tolist()]
    return Reading(sum(float(loss) for loss, _ in results), torch.cat([margins for _, margins in results]), lengths)


def count_tokens(element: Element) -> int:
    """Return the tokens of a comparison's different answers, each with its prompt."""
    answers = {tuple(answer.response): answer.length for pair in element for answer in pair}
    return sum(answers.values())


def parts(elements: list[Element], room: Room) -> Iterator[list[Element]]:
    """Yield the elements, in order, as many together as have room for their different answers; one at least."""
    part: list[Element] = []
    lengths: list[int] = []
    for element in elements:
        own = list({tuple(answer.response): answer.length for pair in element for answer in pair}.values())
        if part and not room.holds(lengths + own):
            yield part
            part, lengths = [], []
        part.append(element)
        lengths += own
    if part:
        yield part


def split(rows: SequenceBatch, room: Room) -> list[SequenceBatch]:
    """Sequences in batches that have room for them, in order, each as wide as its longest one."""
    lengths, cuts = rows.lengths.tolist(), [0]
    for number in range(1, len(lengths)):
        if not room.holds(lengths[cuts[-1] : number + 1]):
            cuts.append(number)
    taken = [(rows.lengths[start:end], slice(start, end)) for start, end in pairwise([*cuts, len(lengths)])]
    return [SequenceBatch(rows.ids[own, : int(lengths.max())], lengths, rows.starts[own]) for lengths, own in taken]


def read_scores(engine: Any, batch: SequenceBatch, packing: str = "packed") -> Tensor:
    """Return the score of each sequence, at its last token, [B] in float32."""
    return response_scores(engine, batch.ids, right_mask(batch.lengths, batch.ids.size(1)), packing).float()


def pair_margins(scores: Tensor, batch: ComparisonBatch) -> Tensor:
    """Score of the preferred minus the other answer of each pair, [P], from the scores of all answers [B]."""
    return scores[batch.chosen] - scores[batch.rejected]


def read_outputs(engine: Any, batch: SequenceBatch, packing: str = "none") -> Tensor:
    """Return the output of every token, padding included, [B, T] in float32, as DeepSpeed-Chat's reward model reads it: the
    padding's own ids, no positions but the model's own, and a mask."""
    mask = right_mask(batch.lengths, batch.ids.size(1))
    outputs: Tensor = engine(input_ids=batch.ids, attention_mask=mask)
    return outputs.float()


def pairs_loss(found: Tensor, batch: ComparisonBatch, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a batch's pairs, weighted, and their margins [P], from the scores of all answers [B], or,
    token-wise, from the outputs of all tokens [B, T]."""
    ends = batch.rows.lengths
    scores = found if found.ndim == 1 else found.gather(1, ends[:, None] - 1).squeeze(1)
    margins = pair_margins(scores, batch)
    chosen, rejected = scores[batch.chosen], scores[batch.rejected]
    if objective.loss == "token_wise":
        starts = first_differences(batch)
        last = torch.maximum(ends[batch.chosen], ends[batch.rejected])
        loss = token_wise_loss(found[batch.chosen], found[batch.rejected], starts, last, batch.weights)
    else:
        weights, loss = batch.weights, torch.zeros((), device=scores.device)
        for order in orders_of(batch) if objective.loss == "plackett_luce" else ():
            loss = loss + plackett_luce_loss(scores[order.rows])
            weights = torch.where(batch.elements == order.element, 0.0, weights)
        loss = loss + pair_loss(chosen, rejected, weights, objective.margin_coef * batch.margins, objective.label_smoothing)
    if objective.center_coef > 0:
        loss = loss + objective.center_coef * center_penalty(chosen, rejected, batch.weights)
    return loss, margins


def first_differences(batch: ComparisonBatch) -> Tensor:
    """Return where the answers of each pair begin to differ, [P]; of equal ones their last place."""
    differ = batch.rows.ids[batch.chosen] != batch.rows.ids[batch.rejected]
    last = torch.maximum(batch.rows.lengths[batch.chosen], batch.rows.lengths[batch.rejected]) - 1
    return torch.where(differ.any(dim=1), differ.int().argmax(dim=1), last)


@dataclass(frozen=True)
class Order:
    """The answers of an element, by their rows, best first."""

    element: int
    rows: list[int]


def orders_of(batch: ComparisonBatch) -> Iterator[Order]:
    """Yield the order of each element's answers, where its pairs give one: every answer is compared with every other, and
    each wins one comparison less than the one before it."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    columns = batch.elements.tolist(), batch.chosen.tolist(), batch.rejected.tolist()
    for element, chosen, rejected in zip(*columns, strict=True):
        pairs.setdefault(element, []).append((chosen, rejected))
    for element, compared in pairs.items():
        if order := order_answers(compared):
            yield Order(element, order)


def order_answers(pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Return answers from the best to the worst, by pairs of which the first was preferred; empty where they give no one
    order."""
    wins = dict.fromkeys((answer for pair in pairs for answer in pair), 0)
    for chosen, _ in set(pairs):
        wins[chosen] += 1
    order = sorted(wins, key=lambda answer: -wins[answer])
    return order if [wins[answer] for answer in order] == list(range(len(order) - 1, -1, -1)) else []


@torch.no_grad()
def first_readings(
    engine: Any,
    batches: list[ComparisonBatch],
    pieces: list[list[SequenceBatch]],
    seeds: list[int | None],
    packing: str,
) -> list[Tensor | None]:
    """Return the scores [B] of each batch that takes several passes; None of one that takes one."""
    several = [found for found in pieces if len(found) > 1]
    own = sum(len(found) for found in several)
    idle = int(maximum(own)) - own if world() > 1 else 0
    known: list[Tensor | None] = []
    for found, seed in zip(pieces, seeds, strict=True):
        scores = []
        for number, rows in enumerate(found if seed is not None else []):
            torch.manual_seed(int(seed or 0) + number)
            scores.append(read_scores(engine, rows, packing))
        known.append(torch.cat(scores) if scores else None)
    for _ in range(idle):
        read_scores(engine, split(batches[0].rows, ALONE)[0], packing)
    return known


def derivative(
    batch: ComparisonBatch, scores: Tensor, objective: Objective, results: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the loss's derivative with respect to each score, [B]; its value and the margins are added to `results`."""
    variable = scores.detach().requires_grad_()
    with torch.enable_grad():
        loss, margins = pairs_loss(variable, batch, objective)
        (slope,) = torch.autograd.grad(loss, variable)
    results.append((loss.detach(), margins.detach()))
    return slope


def whole_loss(
    batch: ComparisonBatch, objective: Objective, results: list[tuple[Tensor, Tensor]]
) -> Callable[[Tensor], Tensor]:
    """Return the loss of a batch that is read at once; its value and the margins are added to `results`."""

    def loss(scores: Tensor) -> Tensor:
        found, margins = pairs_loss(scores, batch, objective)
        results.append((found.detach(), margins.detach()))
        return found

    return loss


def backward_carrying(slope: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a loss whose derivative with respect to the scores [B] is `slope`."""
    return lambda scores: (scores * slope).sum()


def draw_seed() -> int:
    """Return a seed for the dropout of passes that read the same answers twice, from torch's own stream."""
    return int(torch.randint(2**62, ()))
