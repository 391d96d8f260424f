"""What a model card says of using the model: code that runs as it is printed, and how prompts are written."""

from typing import Any

from jinja2 import TemplateError

from rlhf.catalog.stage import Card, kind_of
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.data.cells import Dropped
from rlhf.data.dataset import Message
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates import build_saved_template
from rlhf.data.templates.jinja import encode_by_transformers, find_end_ids, render_messages
from rlhf.models.heads import BIAS, SCALE, is_custom_classifier
from rlhf.tracking.hub import PATH_LINE

QUESTION, ANSWER = "Why is the sky blue?", "Because air scatters blue light most."

ASK = f"""messages = [{{"role": "user", "content": "{QUESTION}"}}]
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
)"""
ANSWERED = f"""messages = [
    {{"role": "user", "content": "{QUESTION}"}},
    {{"role": "assistant", "content": "{ANSWER}"}},
]
ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)"""
GENERATE = """from transformers import AutoModelForCausalLM, AutoTokenizer

{path}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
{ids}
output = model.generate(ids, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))"""
SCORE = """import torch
{imports}

{path}
tokenizer = AutoTokenizer.from_pretrained(path)
{model}
{ids}
with torch.no_grad():
    score = model(ids).logits[0, 0].item()
{rest}print(score)"""
IMPORT = "from transformers import AutoModelForSequenceClassification, AutoTokenizer"
LOAD = 'model = AutoModelForSequenceClassification.from_pretrained(path, dtype="auto")'
OWN_IMPORT = """from transformers import AutoConfig, AutoTokenizer

from rlhf.models.heads import classifier_class"""
OWN_LOAD = 'model = classifier_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype="auto")'
OWN_NOTE = """transformers has no sequence classifier for this family: the example needs this package.
`AutoModel.from_pretrained` loads the body; the head, [1, width], is `score.weight` in the safetensors file."""


def describe_usage(config: Config, stage: str, card: Card, model: Any, tokenizer: Tokenizer) -> str:
    """Return the example of a language model that answers, or of a scorer that scores an answer."""
    if card.scorer:
        return describe_scoring(config, model, tokenizer)
    samples = kind_of(stage).samples
    tokens = config.rollout.max_new_tokens if samples else config.data.max_response_tokens
    ids = ASK if find_prompt_text(tokenizer) else f'ids = tokenizer({write_plain(config)!r}, return_tensors="pt").input_ids'
    told = ""
    if samples:
        rollout = config.rollout
        told = f"\n\nIn training responses were sampled at temperature {rollout.temperature:g}, top_p {rollout.top_p:g}."
    return fence(GENERATE.format(path=PATH_LINE, ids=ids, tokens=tokens)) + told


def describe_scoring(config: Config, model: Any, tokenizer: Tokenizer) -> str:
    """Return the example of a scorer. A score is read at the token that ends the answer: what the chat template has after
    it is cut off."""
    if find_prompt_text(tokenizer):
        after = count_after_end(config, tokenizer)
        ids = ANSWERED + (f"[:, :-{after}]  # up to the token that ends the answer" if after > 0 else "")
    else:
        ids = f'ids = tokenizer({write_plain(config, ANSWER) + tokenizer.eos_token!r}, return_tensors="pt").input_ids'
    is_own = is_custom_classifier(model)
    bias, scale = getattr(model.config, BIAS, 0.0), getattr(model.config, SCALE, 1.0)
    steps = {
        f"score -= model.config.{BIAS}\n": (bias != 0.0, f"{bias:.6g} is subtracted, `{BIAS}` of config.json."),
        f"score /= model.config.{SCALE}\n": (scale != 1.0, f"It is divided by {scale:.6g}, `{SCALE}` of config.json."),
    }
    rest = "".join(step for step, (is_needed, _) in steps.items() if is_needed)
    code = SCORE.format(
        path=PATH_LINE, ids=ids, rest=rest, imports=OWN_IMPORT if is_own else IMPORT, model=OWN_LOAD if is_own else LOAD
    )
    told = [
        "A score is read at the token that ends the answer.",
        *(said for is_needed, said in steps.values() if is_needed),
    ]
    if config.precision.dtype != "fp32":
        told.append(
            f"The example computes the head in {config.precision.dtype}, training did in float32: digits may differ."
        )
    return "\n\n".join([*([OWN_NOTE] if is_own else []), fence(code), " ".join(told)])


def count_after_end(config: Config, tokenizer: Tokenizer) -> int:
    """Return how many tokens the chat template writes after the one that ends an answer; 0 where that is not known."""
    try:
        ours = build_saved_template(config.data, tokenizer).encode_whole(QUESTION, ANSWER)
        theirs = encode_by_transformers(tokenizer, (Message("user", QUESTION), Message("assistant", ANSWER)))
    except (ConfigError, Dropped, TemplateError):
        return 0
    return len(theirs) - len(ours) if theirs[: len(ours)] == ours else 0


def find_prompt_text(tokenizer: Tokenizer) -> str | None:
    """Return the text that the tokenizer's chat template makes of the question; None where there is none, or it refuses
    a question by itself."""
    try:
        return (
            render_messages(tokenizer, (Message("user", QUESTION),), generation_prompt=True)
            if tokenizer.chat_template
            else None
        )
    except Dropped:
        return None


def write_plain(config: Config, answer: str | None = None) -> str:
    """Return the text of the example in the plain formats, with the answer or up to where it begins."""
    text = config.data.prompt_format.format(prompt=QUESTION)
    return text if answer is None else text + config.data.response_format.format(response=answer)


def describe_prompts(config: Config, card: Card, tokenizer: Tokenizer) -> str:
    """Say how a prompt is written, with an example that the tokenizer renders, and what ends a response."""
    formats = f"`{config.data.prompt_format!r}`, and the response as `{config.data.response_format!r}`"
    text = find_prompt_text(tokenizer)
    if text is None:
        text = write_plain(config)
        told = f"A prompt is written as {formats}; the tokenizer has no chat template that gives the same tokens."
    else:
        own = "the tokenizer's own chat template" if config.data.template != "plain" else f"a prompt as {formats}"
        told = f"Training used {own}; `tokenizer.apply_chat_template` gives the text."
    ends = ", ".join(f"`{tokenizer.convert_ids_to_tokens(token)}`" for token in find_end_ids(tokenizer))
    who = "An answer to be scored ends with" if card.scorer else "A response ends with"
    return f"{told} The question {QUESTION!r} is put to the model as\n\n{fence(repr(text))}\n\n{who} {ends}."


def fence(code: str) -> str:
    """Return Python code as a block of Markdown."""
    return f"```python\n{code}\n```"
