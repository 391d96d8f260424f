"""Texts as token ids, by the template of a configuration."""

from rlhf.data.templates import build_template


def encode_prompt(prompt, tokenizer, data):
    """The ids of a prompt, or None where it does not fit."""
    return build_template(data, tokenizer).encode_prompt(prompt)


def encode_response(response, tokenizer, data):
    """The ids of a response after some prompt, with what ends it, unless it is cut."""
    template = build_template(data, tokenizer)
    return template.encode_answer(template.read("Why?"), response).response
