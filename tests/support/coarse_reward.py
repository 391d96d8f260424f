"""A reward of few values: many groups of responses have one score alone."""


def score(prompts, responses, records):
    """1 for a response with an even number of characters, else 0."""
    return [float(len(response) % 2 == 0) for response in responses]
