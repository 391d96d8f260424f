"""The families that can be built with random weights; at a path, anything that transformers can load.

A new family is a file here and a line in `FAMILIES`.
"""

from rlhf.catalog.families import bloom, codegen, gemma2, gpt2, gpt_neo, gpt_neox, gptj, llama, mistral, opt, qwen2, qwen3
from rlhf.catalog.family import Family

FAMILIES: dict[str, Family] = {
    "opt": opt.FAMILY,
    "bloom": bloom.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "gptj": gptj.FAMILY,
    "gpt_neo": gpt_neo.FAMILY,
    "gpt2": gpt2.FAMILY,
    "codegen": codegen.FAMILY,
    "llama": llama.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "mistral": mistral.FAMILY,
    "gemma2": gemma2.FAMILY,
}


def is_limited(name: str) -> bool:
    """Whether there is a longest sequence that a family's models read, as far as is known."""
    return name not in FAMILIES or FAMILIES[name].limited
