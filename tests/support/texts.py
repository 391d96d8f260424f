"""Records as token ids, by a template, in this process."""

from rlhf.data.cells import Dropped
from rlhf.data.templates import build_template


def encode_prompt(prompt, tokenizer, data):
    """The ids of a prompt, or None where it does not fit."""
    return build_template(data, tokenizer).encode_prompt(prompt)


def encode_response(response, tokenizer, data):
    """The ids of a response after some prompt, with what ends it, unless it is cut."""
    template = build_template(data, tokenizer)
    return template.encode_answer(template.read("Why?"), response).response


def encode_demonstrations(records, template):
    """Demonstrations as ids, without those whose prompt does not fit or has no text."""
    return [item for record in records for item in encode_answers(record.prompt, [record.response], template)]


def encode_answers(prompt, responses, template):
    """The responses to a prompt as ids; none at all where the prompt does not fit or one of them has no text."""
    try:
        short = template.shorten(prompt)
        return [] if short is None else [template.encode_answer(short, response) for response in responses]
    except Dropped:
        return []


def encode_comparisons(records, template, grouped):
    """Comparison elements: each pair by itself, or all pairs of a prompt together if `grouped`."""
    groups = {}
    for number, record in enumerate(records):
        if pair := encode_answers(record.prompt, [record.chosen, record.rejected], template):
            groups.setdefault(record.prompt if grouped else number, []).append(tuple(pair))
    return list(groups.values())
