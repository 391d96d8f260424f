"""Templates: how a prompt and a response become text, and the text token ids.

All text that is trained on, scored or sampled from goes through the one object that `build_template` returns.
"""

from rlhf.config.schema import Data
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates.base import ShortPrompt, Template
from rlhf.data.templates.plain import PlainTemplate

__all__ = ["ShortPrompt", "Template", "build_template"]


def build_template(data: Data, tokenizer: Tokenizer) -> Template:
    """Return the template that `data.template` names, for this tokenizer."""
    return PlainTemplate(data, tokenizer)
