"""A reward of few values: many groups of responses have one score alone. It lies on the first half of the response."""


def score(prompts, responses, records):
    """1 for a response with an even number of characters, else 0."""
    return [grade(len(response)) for response in responses]


def grade(size):
    """Return the score of a response of so many characters, on its first half where it has one."""
    value = float(size % 2 == 0)
    return {"spans": [(0, size // 2, value)]} if size > 1 else value
