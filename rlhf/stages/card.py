"""The README.md beside each saved model: what it is, how it came to be, how to load it."""

from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.schema import Model
from rlhf.engine.save import plain_module
from rlhf.experiment.spec import Spec
from rlhf.models.heads import BIAS, SCALE, is_custom_classifier

LANGUAGE_MODEL = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(DIR), AutoTokenizer.from_pretrained(DIR)
```"""
CLASSIFIER = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model, tokenizer = AutoModelForSequenceClassification.from_pretrained(DIR), AutoTokenizer.from_pretrained(DIR)
```"""
OWN_CLASSIFIER = """transformers has no sequence classifier for this family. `AutoModel.from_pretrained(DIR)` loads the
body; the weights of the head, [1, width], are `score.weight` in the safetensors file. With this package the whole is

```python
from transformers import AutoConfig

from rlhf.models.heads import classifier_class

model = classifier_class(AutoConfig.from_pretrained(DIR)).from_pretrained(DIR)
```

which takes what AutoModelForSequenceClassification takes for other families."""


def write_model_card(spec: Spec, name: str, engine: Any, metrics: dict[str, float]) -> str:
    """Write the text of the model card for a model of the stage; `name` is one of its kind's `cards`."""
    config, model = spec.config, plain_module(engine)
    kind = kind_of(spec.stage)
    sentence, scorer = kind.cards[name].sentence, kind.cards[name].scorer
    loading = LANGUAGE_MODEL if not scorer else OWN_CLASSIFIER if is_custom_classifier(model) else CLASSIFIER
    start: Model = getattr(config, kind.loads or "model")
    origin = [f"- {name}: `{path}`" for name, path in sorted(spec.inputs.items())] or [
        f"- started from: `{start.path}`" if start.path else f"- started from: random weights in the shape of {start.name}"
    ]
    lines = ["# " + sentence[0].upper() + sentence[1:], "", *origin]
    lines += [
        f"- family: `{model.config.model_type}`, {config.precision.dtype}",
        f"- stage: `{spec.stage}-{spec.fingerprint[:12]}`",
    ]
    if kind.samples_responses:
        lines += [f"- algorithm: `{config.algorithm}`"]
    is_plain = config.data.template == "plain"
    text = f"prompts as `{config.data.prompt_format!r}`" if is_plain else f"template: `{config.data.template}`"
    sets = f" of {', '.join(config.data.mix)}" if config.data.mix else ""
    lines += [f"- data: `{config.data.source}`{sets}, {text}; `tokenizer.apply_chat_template` gives the text"]
    lines += ["", "## Loading", "", loading, ""]
    if scorer:
        bias, scale = (getattr(model.config, name, default) for name, default in ((BIAS, 0.0), (SCALE, 1.0)))
        formula = f"(output - {bias:.6g}) / {scale:.6g}, `{BIAS}` and `{SCALE}` of config.json"
        lines += [f"A score is read at the end-of-text token: {formula}.", ""]
    if metrics:
        lines += ["## Held-out figures", "", *(f"- {name}: {value:.6g}" for name, value in sorted(metrics.items())), ""]
    return "\n".join(lines)
