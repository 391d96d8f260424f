"""Which weights of a family's model a decode step reads, and in which order. A family that is not here, and a model whose
modules are not the family's own (quantised ones, shares of a layer), are read by transformers' code.

Sources: transformers' modeling files of each family, 5.17 to 5.24.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf.models.heads import plain_model
from rlhf.models.step.layers import (
    Attention,
    Block,
    Chain,
    Copies,
    FeedForward,
    Linear,
    Map,
    Reader,
    Reordered,
    Rotary,
)

tanh_gelu: Map = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Map] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "swish": F.silu, "gelu_new": tanh_gelu, "gelu_pytorch_tanh": tanh_gelu,
}  # fmt: skip
# Rotary embeddings whose angles follow from the position alone.
STATIC_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})
CODEGEN_SHARDS = 4


class UnknownModuleError(Exception):
    """A model is not what the family's own code makes."""


def make_reader(model: Any, positions: int, copies: Copies) -> Reader | None:
    """Return what reads one token per row at up to `positions` positions, with the weights as they are now; None where only
    transformers' code can."""
    plain = plain_model(model)
    build = FAMILIES.get(plain.config.model_type)
    is_shared = any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in plain.modules())
    try:
        return None if build is None or is_shared else build(plain, positions, copies)
    except UnknownModuleError:
        return None
    except AttributeError as error:
        warnings.warn(f"decode steps are read by transformers' code, slower: {error}", stacklevel=2)
        return None


def linear(module: Any) -> Linear:
    """Return a linear layer, GPT-2's transposed one too, or the one inside adapters that are merged or off. Raises
    UnknownModuleError for another."""
    base = getattr(module, "base_layer", module)
    adds = base is not module and not module.disable_adapters
    if adds or type(base) not in (nn.Linear, Conv1D) or base.weight.ndim != 2:
        raise UnknownModuleError
    return Linear(base.weight.t() if type(base) is Conv1D else base.weight, base.bias)


def layer_norm(module: Any) -> Map:
    """Return a LayerNorm. Raises UnknownModuleError for another norm."""
    if type(module) is not nn.LayerNorm:
        raise UnknownModuleError
    return partial(
        F.layer_norm, normalized_shape=module.normalized_shape, weight=module.weight, bias=module.bias, eps=module.eps
    )


def rms_norm(module: Any) -> Map:
    """Return the RMSNorm of the families of Llama."""
    return partial(
        F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=float(module.variance_epsilon)
    )


def shifted_rms_norm(name: str, module: Any, copies: Copies) -> Map:
    """Return Gemma 2's RMSNorm, which multiplies by 1 + weight, in float32."""
    weight, eps = copies.keep(name, module.weight.float() + 1.0), float(module.eps)

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    return norm


def activation(name: str) -> Map:
    """Return an activation. Raises UnknownModuleError for one that is not among ours."""
    if name not in ACTIVATIONS:
        raise UnknownModuleError
    return ACTIVATIONS[name]


def chain(*maps: Map | None) -> Chain:
    """Return maps one after another; None is left out."""
    return Chain(tuple(change for change in maps if change is not None))


def embed_positions(tokens: Any, positions: Any, offset: int = 0, project: Map | None = None) -> Any:
    """Return learned embeddings of tokens, projected, and of positions, which begin at `offset`, added."""
    table = positions.weight[offset:]

    def embed(ids: Tensor, places: Tensor) -> Tensor:
        found = F.embedding(ids, tokens.weight)
        return (found if project is None else project(found)) + F.embedding(places, table)

    return embed


def embed_tokens(tokens: Any, scale: Tensor | None = None) -> Any:
    """Return embeddings of tokens alone, times `scale`."""

    def embed(ids: Tensor, places: Tensor) -> Tensor:
        found = F.embedding(ids, tokens.weight)
        return found if scale is None else found * scale

    return embed


def make_rotary(cosines: Tensor, sines: Tensor, width: int, pairs: bool, copies: Copies) -> Rotary:
    """Return rotary embeddings of heads of `width` elements, of which the first n turn by [positions, n]: element i with
    i + n / 2, or its neighbour if `pairs`."""
    count, turned = cosines.shape
    numbers = torch.arange(width, device=cosines.device)
    partner, sign = numbers.clone(), torch.ones_like(sines)
    if pairs:
        partner[:turned] = numbers[:turned] ^ 1
        sign[:, ::2] = -1
    else:
        partner[:turned] = numbers[:turned].roll(turned // 2)
        sign[:, : turned // 2] = -1
    table = torch.stack([cosines.new_ones(count, width), cosines.new_zeros(count, width)], dim=1)
    table[:, 0, :turned], table[:, 1, :turned] = cosines, sines * sign
    return Rotary(copies.keep("rotary.table", table), copies.keep("rotary.partner", partner))


def rotary_of(body: Any, width: int, positions: int, copies: Copies) -> Rotary:
    """Return the rotary embeddings of a model that computes cosines and sines by its `rotary_emb`. Raises
    UnknownModuleError where they depend on more than the position."""
    module = body.rotary_emb
    if getattr(module, "rope_type", None) not in STATIC_ANGLES:
        raise UnknownModuleError
    like = next(body.parameters())
    cosines, sines = module(like, torch.arange(positions, device=like.device)[None])
    return make_rotary(cosines[0], sines[0], width, False, copies)


def paired_rotary(body: Any, width: int, positions: int, copies: Copies) -> Rotary:
    """Return the rotary embeddings of GPT-J and CodeGen, which turn neighbours."""
    turned, like = body.config.rotary_dim or body.config.hidden_size, next(body.parameters())
    if turned > width:
        raise UnknownModuleError
    frequencies = 1.0 / (10000 ** (torch.arange(0, turned, 2) / turned))
    angles = (torch.arange(positions)[:, None] * frequencies).repeat_interleave(2, 1)
    cosines, sines = (part.to(like.device, like.dtype) for part in (angles.cos(), angles.sin()))
    return make_rotary(cosines, sines, width, True, copies)


def project_apart(name: str, attention: Any, copies: Copies) -> Map:
    """Return the product of queries, keys and values of an attention that has a layer for each."""
    return copies.stack(name, *(linear(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)))


def read_opt(model: Any, positions: int, copies: Copies) -> Reader:
    """Read OPT, with norms before or (350M) after each part."""
    config, body = model.config, model.model.decoder
    heads, blocks = config.num_attention_heads, []
    for number, layer in enumerate(body.layers):
        own = layer.self_attn
        project = project_apart(f"{number}.qkv", own, copies)
        attention = Attention(project, linear(own.out_proj), heads, heads, own.head_dim**-0.5)
        forward = FeedForward(linear(layer.fc1), activation(config.activation_function), linear(layer.fc2))
        norms = layer_norm(layer.self_attn_layer_norm), layer_norm(layer.final_layer_norm)
        before = layer.do_layer_norm_before
        blocks.append(Block(attention, forward, norms) if before else Block(attention, forward, outer=norms))
    last = body.final_layer_norm
    head = chain(
        None if last is None else layer_norm(last), None if body.project_out is None else linear(body.project_out),
        linear(model.lm_head),
    )  # fmt: skip
    enter = None if body.project_in is None else linear(body.project_in)
    embed = embed_positions(body.embed_tokens, body.embed_positions, body.embed_positions.offset, enter)
    return Reader(embed, blocks, head, windows=frozenset({None}))


def read_gpt2(model: Any, positions: int, copies: Copies) -> Reader:
    """Read GPT-2."""
    config, body = model.config, model.transformer
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise UnknownModuleError
    blocks = []
    for layer in body.h:
        attention = Attention(linear(layer.attn.c_attn), linear(layer.attn.c_proj), heads, heads, width**-0.5)
        mlp = layer.mlp
        forward = FeedForward(linear(mlp.c_fc), activation(config.activation_function), linear(mlp.c_proj))
        blocks.append(Block(attention, forward, (layer_norm(layer.ln_1), layer_norm(layer.ln_2))))
    head = chain(layer_norm(body.ln_f), linear(model.lm_head))
    return Reader(embed_positions(body.wte, body.wpe), blocks, head, windows=frozenset({None}))


def read_gpt_neo(model: Any, positions: int, copies: Copies) -> Reader:
    """Read GPT-Neo, whose scores are not scaled, with local layers."""
    config, body = model.config, model.transformer
    heads, blocks = config.num_attention_heads, []
    for number, layer in enumerate(body.h):
        own, mlp = layer.attn.attention, layer.mlp
        window = config.window_size if own.attention_type == "local" else None
        project = project_apart(f"{number}.qkv", own, copies)
        attention = Attention(project, linear(own.out_proj), heads, heads, 1.0, window=window)
        forward = FeedForward(linear(mlp.c_fc), activation(config.activation_function), linear(mlp.c_proj))
        blocks.append(Block(attention, forward, (layer_norm(layer.ln_1), layer_norm(layer.ln_2))))
    head = chain(layer_norm(body.ln_f), linear(model.lm_head))
    return Reader(embed_positions(body.wte, body.wpe), blocks, head, windows=windows_of(blocks))


def read_gpt_neox(model: Any, positions: int, copies: Copies) -> Reader:
    """Read GPT-NeoX, which keeps queries, keys and values head by head."""
    config, body = model.config, model.gpt_neox
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    rotary, blocks = rotary_of(body, width, positions, copies), []
    order = torch.arange(3 * config.hidden_size).view(heads, 3, width).transpose(0, 1).flatten()
    for number, layer in enumerate(body.layers):
        project = reorder(f"{number}.qkv", linear(layer.attention.query_key_value), order, copies)
        attention = Attention(project, linear(layer.attention.dense), heads, heads, width**-0.5, rotary)
        mlp = layer.mlp
        forward = FeedForward(linear(mlp.dense_h_to_4h), activation(config.hidden_act), linear(mlp.dense_4h_to_h))
        norms = layer_norm(layer.input_layernorm), layer_norm(layer.post_attention_layernorm)
        blocks.append(Block(attention, forward, norms, parallel=layer.use_parallel_residual))
    head = chain(layer_norm(body.final_layer_norm), linear(model.get_output_embeddings()))
    return Reader(embed_tokens(body.embed_in), blocks, head, rotary, frozenset({None}))


def read_gptj(model: Any, positions: int, copies: Copies) -> Reader:
    """Read GPT-J."""
    return read_paired(model, positions, copies, lambda number, own: project_apart(f"{number}.qkv", own, copies))


def read_codegen(model: Any, positions: int, copies: Copies) -> Reader:
    """Read CodeGen, which keeps queries, values and keys in four shards."""
    part = model.config.hidden_size // CODEGEN_SHARDS
    shards = torch.arange(3 * model.config.hidden_size).view(CODEGEN_SHARDS, 3, part)
    order = shards[:, [0, 2, 1]].transpose(0, 1).flatten()
    return read_paired(
        model, positions, copies, lambda number, own: reorder(f"{number}.qkv", linear(own.qkv_proj), order, copies)
    )


def read_paired(model: Any, positions: int, copies: Copies, project: Callable[[int, Any], Map]) -> Reader:
    """Read GPT-J and CodeGen, with one norm before both parts."""
    config, body = model.config, model.transformer
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    rotary, blocks = paired_rotary(body, width, positions, copies), []
    for number, layer in enumerate(body.h):
        own, mlp = layer.attn, layer.mlp
        attention = Attention(project(number, own), linear(own.out_proj), heads, heads, width**-0.5, rotary)
        forward = FeedForward(linear(mlp.fc_in), activation(config.activation_function), linear(mlp.fc_out))
        blocks.append(Block(attention, forward, (layer_norm(layer.ln_1), None), parallel=True))
    head = chain(layer_norm(body.ln_f), linear(model.lm_head))
    return Reader(embed_tokens(body.wte), blocks, head, rotary, frozenset({None}))


def read_llama(model: Any, positions: int, copies: Copies) -> Reader:
    """Read Llama, Mistral, Qwen2, and Qwen3, whose queries and keys are normed."""
    config, body = model.config, model.model
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    rotary, blocks = rotary_of(body, width, positions, copies), []
    for number, layer in enumerate(body.layers):
        own = layer.self_attn
        attention = Attention(
            project_apart(f"{number}.qkv", own, copies), linear(own.o_proj), heads, shared, width**-0.5, rotary,
            normalize_heads(f"{number}.norm", own, heads, shared, copies) if hasattr(own, "q_norm") else None,
            window_of(config, own),
        )  # fmt: skip
        norms = rms_norm(layer.input_layernorm), rms_norm(layer.post_attention_layernorm)
        blocks.append(Block(attention, read_gated(number, layer.mlp, config.hidden_act, copies), norms))
    head = chain(rms_norm(body.norm), linear(model.lm_head))
    return Reader(embed_tokens(body.embed_tokens), blocks, head, rotary, windows_of(blocks))


def read_gemma2(model: Any, positions: int, copies: Copies) -> Reader:
    """Read Gemma 2, with norms around both parts and bounded scores and logits."""
    config, body = model.config, model.model
    width, bound = config.head_dim, config.final_logit_softcapping
    rotary, blocks = rotary_of(body, width, positions, copies), []
    for number, layer in enumerate(body.layers):
        own = layer.self_attn
        attention = Attention(
            project_apart(f"{number}.qkv", own, copies), linear(own.o_proj), config.num_attention_heads,
            config.num_key_value_heads, config.query_pre_attn_scalar**-0.5, rotary, window=own.sliding_window,
            softcap=config.attn_logit_softcapping,
        )  # fmt: skip
        names = "input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"
        before, between, after, last = (
            shifted_rms_norm(f"{number}.{name}", getattr(layer, name), copies) for name in names
        )
        forward = read_gated(number, layer.mlp, config.hidden_activation, copies)
        blocks.append(Block(attention, forward, (before, between), (after, last)))
    cap = None if bound is None else lambda logits: torch.tanh(logits / bound) * bound
    head = chain(shifted_rms_norm("norm", body.norm, copies), linear(model.lm_head), cap)
    table = body.embed_tokens.weight
    scale = copies.keep("scale", torch.tensor(config.hidden_size**0.5).to(table.dtype).to(table.device))
    return Reader(embed_tokens(body.embed_tokens, scale), blocks, head, rotary, windows_of(blocks))


def read_gated(number: int, mlp: Any, name: str, copies: Copies) -> FeedForward:
    """Return a gated feed-forward part."""
    up = copies.stack(f"{number}.gate", linear(mlp.gate_proj), linear(mlp.up_proj))
    return FeedForward(up, activation(name), linear(mlp.down_proj), gated=True)


def reorder(name: str, fused: Linear, order: Tensor, copies: Copies) -> Map:
    """Return a linear layer with its outputs in another order."""
    order = copies.keep("order", order.to(fused.weight.device))
    if not copies.stacks:
        return Reordered(fused, order)
    bias = None if fused.bias is None else copies.keep(f"{name}.bias", fused.bias[order])
    return Linear(copies.keep(f"{name}.weight", fused.weight[order]), bias)


def normalize_heads(name: str, attention: Any, heads: int, shared: int, copies: Copies) -> Map:
    """Return the norms of queries and keys [B, H + K, D], together."""
    query, key = attention.q_norm, attention.k_norm
    weights = query.weight.expand(heads, -1), key.weight.expand(shared, -1)
    weight, eps = copies.keep(name, torch.cat(weights)), float(query.variance_epsilon)
    return lambda x: F.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)


def window_of(config: Any, attention: Any) -> int | None:
    """Return the tokens that a layer's attention sees; None: all. Mistral has one window for all layers."""
    if hasattr(attention, "sliding_window"):
        own: int | None = attention.sliding_window
        return own
    return getattr(config, "sliding_window", None) if config.model_type == "mistral" else None


def windows_of(blocks: list[Block]) -> frozenset[int | None]:
    """Return the windows of all layers."""
    return frozenset(block.attention.window for block in blocks)


FAMILIES: dict[str, Callable[[Any, int, Copies], Reader]] = {
    "opt": read_opt, "gpt2": read_gpt2, "gpt_neo": read_gpt_neo, "gpt_neox": read_gpt_neox, "gptj": read_gptj,
    "codegen": read_codegen, "llama": read_llama, "mistral": read_llama, "qwen2": read_llama, "qwen3": read_llama,
    "gemma2": read_gemma2,
}  # fmt: skip
