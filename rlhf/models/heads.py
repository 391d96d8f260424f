"""The scorer: a transformer body with one output per token. At the last token of an answer it is the reward model's
score; at every token it is the critic's value."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

# Where the reward model keeps what is subtracted from its scores: an entry of its config.json.
BIAS = "reward_bias"


class Scorer(nn.Module):
    """Per-token outputs [B, T] of transformers' sequence classifier with one label, which it saves as."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier: Any = classifier

    @property
    def config(self) -> Any:
        """The classifier's configuration."""
        return self.classifier.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Outputs of every token, in the model's format."""
        core = self.classifier.get_base_model() if hasattr(self.classifier, "get_base_model") else self.classifier
        body = getattr(core, core.base_model_prefix)
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs).last_hidden_state
        outputs: Tensor = core.score(hidden).squeeze(-1)
        return outputs


def init_head(classifier: Any, seed: int) -> None:
    """Draw the head from N(0, 1 / (width + 1)) (arXiv 2009.01325, appendix B.1), from a generator of its own."""
    weight = classifier.score.weight
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[1] + 1)
    with torch.no_grad():
        weight.copy_(values)


def model_inputs(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What a forward pass takes: ids with padding replaced by a valid id, the mask, and positions that count real tokens
    where the model takes them. `ids` and `mask` are [B, T], padded on either side or both."""
    inputs = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    if takes_positions(model):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return inputs


def takes_positions(model: Any) -> bool:
    """Whether the model's forward pass has a `position_ids` argument."""
    core = model
    for attribute in ("module", "classifier"):
        core = getattr(core, attribute, core)
    core = core.get_base_model() if hasattr(core, "get_base_model") else core
    return "position_ids" in inspect.signature(core.forward).parameters


def last_token(values: Tensor, lengths: Tensor) -> Tensor:
    """Of right-padded [B, T], the entry of each row's last real token, [B]."""
    return values.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
