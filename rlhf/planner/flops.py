"""Floating-point operations of a transformer, counted over real tokens. Pure: no torch.

Products of matrices are counted, a multiply-add as two operations; norms, activations and softmax are not. A token costs
2 I O operations per matrix of I inputs and O outputs, and 4 H D in each layer for every position that it attends to: its
scores, and their product with the values, in H heads of width D. The full square of positions is computed, as the usual
counts have it (arXiv 2104.04473, appendix) and transformers' eager attention does; key-value heads that queries share save
weights, not scores. In the backward pass a product costs as much again for the gradient of either factor that needs one. An
adapter of rank R (arXiv 2106.09685) is two more matrices, R x I and O x R.

tests/unit/planner/test_flops.py compares with PyTorch's own count (torch.utils.flop_counter) of every family's model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.family import GATED, PLAIN, LayerNames
from rlhf.config.schema import Lora, Model


@dataclass(frozen=True)
class Matrix:
    """A linear layer of a block, of `inputs` x `outputs` weights; `after` names those of the block that its input went
    through."""

    name: str
    inputs: int
    outputs: int
    after: tuple[str, ...]


def layer_names(model: Model) -> LayerNames:
    """Return the family's; for a family that we do not know, Llama's if gated and OPT's if not."""
    if model.family in FAMILIES:
        return FAMILIES[model.family].layer_names
    return GATED if model.gated_mlp else PLAIN


def matrices(model: Model) -> list[Matrix]:
    """Return the linear layers of one block, in the order of their use."""
    names, width, ffn = layer_names(model), model.hidden_size, model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    made = (queries, keys, keys) if len(names.attended) == 3 else (queries + 2 * keys,)
    before = () if names.parallel else (*names.attended, names.mixed)
    return [
        *(Matrix(name, width, outputs, ()) for name, outputs in zip(names.attended, made, strict=True)),
        Matrix(names.mixed, queries, width, names.attended),
        *(Matrix(name, width, ffn, before) for name in names.wide),
        Matrix(names.narrow, ffn, width, (*before, *names.wide)),
    ]


def forward_flops(model: Model, lengths: Iterable[int], logit_tokens: int, lora: Lora | None = None) -> int:
    """Operations of a forward pass over sequences of these lengths, in tokens, with logits of `logit_tokens` tokens in all
    (0 for a scorer, whose head is a single row); with `lora`, through adapters that are not merged."""
    tokens, pairs = tokens_and_pairs(lengths)
    return body_forward(model, lora, tokens, pairs) + head(model, logit_tokens)


def training_flops(
    model: Model,
    lengths: Iterable[int],
    logit_tokens: int,
    lora: Lora | None = None,
    checkpointing: bool = False,
    dropout: float = 0.0,
) -> int:
    """Operations of a forward and a backward pass over sequences of these lengths, in tokens, with logits of `logit_tokens`
    tokens in all.

    Three times the forward pass if all weights train. With adapters only, frozen matrices hand gradients on but get none,
    and what comes before the first adapter has none at all. Checkpointing computes the blocks again, and makes their input
    require a gradient. `dropout` is the model's own, not the adapters'.
    """
    tokens, pairs = tokens_and_pairs(lengths)
    trains = all_trainable(lora)
    flows = trains or checkpointing
    total = body_forward(model, lora, tokens, pairs) + (2 + trains) * head(model, logit_tokens)
    total += block_backward(model, lora, tokens, pairs, flows)
    total += (model.num_hidden_layers - 1) * block_backward(model, lora, tokens, pairs, flows=True)
    total += 2 * projection(model) * tokens * (trains + flows + trains + 1)  # the one in, and the one out
    if checkpointing:
        total += model.num_hidden_layers * (block_forward(model, lora, tokens, pairs) - kept(model, lora, dropout) * tokens)
    return total


def generation_flops(
    model: Model,
    prompts: Iterable[int],
    responses: Iterable[int],
    lora: Lora | None = None,
    read: Sequence[int] | None = None,
) -> int:
    """Operations of sampling responses of these lengths after prompts of these lengths, in tokens, with a key-value cache:
    the prompt at once, then one token at a time (the last one is never fed back). `read` are the prompts that are read,
    where several responses share one (rlhf/planner/cache.py); without it each response has its own."""
    lengths = list(prompts)
    tokens, pairs = tokens_and_pairs(lengths if read is None else read)
    sampled = len(lengths if read is None else read)  # the logits of each first token
    for (prompt, response), count in Counter(zip(lengths, responses, strict=True)).items():
        fed = response - 1
        tokens += count * fed
        pairs += count * (fed * prompt + fed * (fed + 1) // 2)
        sampled += count * fed
    return body_forward(model, lora, tokens, pairs) + head(model, sampled)


def merge_flops(model: Model, lora: Lora | None) -> int:
    """Operations of merging adapters into the weights: 2 R I O for each matrix that has one."""
    return model.num_hidden_layers * sum(2 * rank_on(m, lora) * m.inputs * m.outputs for m in matrices(model))


def tokens_and_pairs(lengths: Iterable[int]) -> tuple[int, int]:
    """Tokens of sequences of these lengths, and pairs of a token and a position of its sequence."""
    counts = Counter(lengths)  # a plan has millions of one length
    return sum(count * length for length, count in counts.items()), sum(n * length**2 for length, n in counts.items())


def head(model: Model, tokens: int) -> int:
    """Operations of the logits of so many tokens: 2 E V each. A head that is tied to the embedding is no less work."""
    return 2 * model.word_embed_proj_dim * model.vocab_size * tokens


def projection(model: Model) -> int:
    """Weights of the matrix between a narrower embedding and the blocks; there is one into them and one out of them."""
    return model.hidden_size * model.word_embed_proj_dim if model.word_embed_proj_dim != model.hidden_size else 0


def body_forward(model: Model, lora: Lora | None, tokens: int, pairs: int) -> int:
    """Operations of a forward pass without the head."""
    return model.num_hidden_layers * block_forward(model, lora, tokens, pairs) + 2 * 2 * projection(model) * tokens


def block_forward(model: Model, lora: Lora | None, tokens: int, pairs: int) -> int:
    """Operations of one block: 2 I O + 2 R (I + O) per token and matrix, and 4 H D per pair."""
    per_token = sum(2 * m.inputs * m.outputs + 2 * rank_on(m, lora) * (m.inputs + m.outputs) for m in matrices(model))
    return per_token * tokens + 4 * model.num_attention_heads * model.head_dim * pairs


def block_backward(model: Model, lora: Lora | None, tokens: int, pairs: int, flows: bool) -> int:
    """Operations of one block's backward pass; `flows`: its input requires a gradient, as it does where all weights train.

    Per token, 2 I O for the gradient of a matrix that trains, 2 R (I + 2 O) for an adapter's two matrices and what is
    between them, and 2 I O + 2 R I for their input where that requires a gradient. Per pair, 2 H D for each that does of
    queries, keys, values and scores.
    """
    trains, per_token = all_trainable(lora), 0
    live = {m.name for m in matrices(model) if flows or rank_on(m, lora)}  # their outputs require one
    for m in matrices(model):
        weights, rank = m.inputs * m.outputs, rank_on(m, lora)
        per_token += 2 * weights * trains + 2 * rank * (m.inputs + 2 * m.outputs)
        if flows or live.intersection(m.after):
            per_token += 2 * weights + 2 * rank * m.inputs
    made = [name in live for name in layer_names(model).attended]
    queries, keys, values = made if len(made) == 3 else made * 3
    per_pair = 2 * model.num_attention_heads * model.head_dim * (queries + keys + values + (queries or keys))
    return per_token * tokens + per_pair * pairs


def all_trainable(lora: Lora | None) -> bool:
    """Whether the model's own weights train."""
    return lora is None or lora.rank == 0 or not lora.only


def rank_on(matrix: Matrix, lora: Lora | None) -> int:
    """Rank of a matrix's adapter, 0 for none. `auto` adapts every matrix of a block; a list, those that end in one of its
    names, from a dot on, as PEFT has it. What it names outside the blocks is not counted."""
    if lora is None:
        return 0
    named = lora.target_modules == "auto" or any(f".{matrix.name}".endswith(f".{name}") for name in lora.target_modules)
    return lora.rank if named else 0


def kept(model: Model, lora: Lora | None, dropout: float) -> int:
    """Operations per token that a checkpointed block does not do again: PyTorch stops as soon as it has all that the
    backward pass needs, so the product with the last matrix (of its adapter, if it has one) is left out, unless a layer
    norm or dropout follows. With the linear function that DeepSpeed sets at ZeRO stage 3 it is not: there this product is
    made again and not counted, some 5 % of the work if all weights train."""
    last = matrices(model)[-1]
    norm_last = model.family in FAMILIES and FAMILIES[model.family].norm_last
    if norm_last or not model.do_layer_norm_before or (dropout > 0 and not model.gated_mlp):
        return 0
    return 2 * (rank_on(last, lora) or last.inputs) * last.outputs
