"""GPT-Neo's attention through transformers' attention interface, which the family's own code does not use.

transformers takes the causal mask of a local layer from a table of its own, by the number of keys: right where the last
query is the last key, wrong where a cache has slots beyond it. Here a local layer sees the last `window_size` keys up to
each query, wherever that is.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

# This package's attention in transformers' tables (models/attention.py).
NAME = "rlhf"


class NeoAttention(GPTNeoSelfAttention):
    """Attention of a `global` or `local` layer, with transformers' weights and their names."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """[B, Q, H] to [B, Q, H]. `attention_mask` is True where a query sees a key, [B, 1, Q, K], or None for all up to
        itself, or what else the interface's function takes (models/attention.py: the lengths of a row's sequences)."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_id)
        window = self.config.window_size if self.attention_type == "local" else None
        if window is not None and (attention_mask is None or attention_mask.dtype == torch.bool):
            attention_mask = within_window(attention_mask, query.size(2), key.size(2), window, query.device)
        attended, _ = ALL_ATTENTION_FUNCTIONS[NAME](
            self, query, key, value, attention_mask, scaling=1.0, sliding_window=window,
            dropout=self.attn_dropout.p if self.training else 0.0,
        )  # fmt: skip
        return self.resid_dropout(self.out_proj(attended.flatten(2))), None


def within_window(mask: Tensor | None, queries: int, keys: int, window: int, device: torch.device) -> Tensor | None:
    """Return a causal mask [B, 1, Q, K] (None: nothing else is hidden) without the keys that lie `window` or more before
    their query: among as many keys the query of the same number, a single one after all others, else the last key it
    sees."""
    if keys <= window:
        return mask
    positions = torch.arange(keys, device=device)
    own: Tensor | int
    if mask is not None and queries != keys:
        own = (mask * positions).amax(-1, keepdim=True)
    else:
        own = keys - 1 if queries == 1 else positions[:queries, None]
    near = (positions <= own) & (positions > own - window)
    return near.expand(1, 1, queries, keys) if mask is None else mask & near


def replace_attention(model: Any) -> None:
    """Give a GPT-Neo that was built with another attention this one."""
    for module in model.modules():
        if isinstance(module, GPTNeoSelfAttention):
            module.__class__ = NeoAttention


family: Any = modeling_gpt_neo
family.GPT_NEO_ATTENTION_CLASSES[NAME] = NeoAttention
