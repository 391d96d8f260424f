"""The scorer: a transformer body with one output per token. At the last token of an answer it is the reward model's
score; at every token it is the critic's value."""

import inspect
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where the reward model keeps what is subtracted from its scores, and what they are then divided by: its config.json.
BIAS, SCALE = "reward_bias", "reward_scale"


class ScalarHeadModel(nn.Module):
    """Per-token outputs [B, T] of transformers' sequence classifier with one label, which it saves as; less the bias and
    divided by the scale that its config.json holds."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier: Any = classifier
        self.bias = float(getattr(classifier.config, BIAS, 0.0))
        self.scale = float(getattr(classifier.config, SCALE, 1.0))
        if type(getattr(classifier, "score", None)) is nn.Linear:
            classifier.score.__class__ = Float32Linear

    @property
    def config(self) -> Any:
        """The configuration of the classifier."""
        return self.classifier.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Return the outputs of every token, in float32."""
        core = self.classifier.get_base_model() if hasattr(self.classifier, "get_base_model") else self.classifier
        body = getattr(core, core.base_model_prefix)
        # An actor of another size may have more rows that no token uses (Pythia, Qwen), and once in a while sample one.
        ids = input_ids.clamp(max=self.config.get_text_config().vocab_size - 1)
        hidden = body(input_ids=ids, attention_mask=attention_mask, use_cache=False, **inputs).last_hidden_state
        outputs: Tensor = (core.score(hidden).squeeze(-1) - self.bias) / self.scale
        return outputs


class Float32Linear(nn.Linear):
    """A head that computes in float32 whatever the model's format: near 8, bf16 knows steps of 1/16 only."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs in float32."""
        return F.linear(input.float(), self.weight.float())


def head_weights(shape: torch.Size, seed: int) -> Tensor:
    """Return a head drawn from N(0, 1 / (width + 1)) (arXiv 2009.01325, appendix B.1), from a generator of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / math.sqrt(shape[1] + 1)


def classifier_class(settings: Any) -> Any:
    """Return the sequence classifier of a configuration: transformers' own, or for a family that has none (CodeGen), one
    of the same make, which saves the same way. In that case `AutoModel` loads the body, and `score.weight` is beside
    it."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING
    from transformers.modeling_layers import GenericForSequenceClassification

    if type(settings) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(settings)]
    body: Any = MODEL_MAPPING[type(settings)]
    name = body.__name__.removesuffix("Model") + "ForSequenceClassification"
    pretrained = next(base for base in body.__mro__ if base.__name__.endswith("PreTrainedModel"))
    return type(name, (GenericForSequenceClassification, pretrained), {"base_model_prefix": pretrained.base_model_prefix})


def is_custom_classifier(model: Any) -> bool:
    """Whether a classifier is of the make above, which plain transformers does not know."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return type(model.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def model_inputs(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Build the inputs of a forward pass: ids with padding replaced by a valid id, the mask, and positions that count real
    tokens where the model takes them. `ids` and `mask` are [B, T], padded on either side or both."""
    inputs = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    if takes_positions(model):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return inputs


def takes_positions(model: Any) -> bool:
    """Whether the model's forward pass has a `position_ids` argument."""
    return "position_ids" in accepted_inputs(model)


def accepted_inputs(model: Any) -> frozenset[str]:
    """Return the names of the arguments of the forward pass of transformers' model, in whatever it is wrapped."""
    kind: Any = type(plain_model(model))
    return inputs_of(kind)


def plain_model(model: Any) -> Any:
    """Return transformers' model in an engine, a scorer, adapters, or all of them."""
    for attribute in ("module", "classifier"):
        model = getattr(model, attribute, model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@cache
def inputs_of(kind: Any) -> frozenset[str]:
    """Return the names of the arguments of a class's forward pass; looked up once, since it is asked for at every step."""
    return frozenset(inspect.signature(kind.forward).parameters)


def last_token(values: Tensor, lengths: Tensor) -> Tensor:
    """Return, of right-padded values [B, T], the entry of each row's last real token, [B]."""
    return values.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
