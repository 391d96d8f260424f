"""Random tokens to measure with, of the lengths that the recipe asks for; a rank gets its share of the global batch."""

from dataclasses import replace

import numpy as np
import torch

from rlhf.config.derive import ranks
from rlhf.config.schema import Config
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import local_share
from rlhf.data.tokens import PromptBatch, prompt_batch
from rlhf.runtime.distributed import rank
from rlhf.runtime.seeds import random_stream

# Ids that every tokenizer has and that mean nothing special.
IDS = 5, 300
# Answers of assistants have a long tail over a short middle: lengths are log-normal, with a median of this share of the
# longest and this standard deviation of the logarithm.
MEDIAN, SPREAD = 1 / 3, 0.7
LEAST = 4


def draw_lengths(config: Config, purpose: str, count: int, most: int) -> list[int]:
    """Lengths of `count` texts of at most `most` tokens: all the same, or real ones (`bench.lengths`)."""
    if config.bench.lengths == "fixed":
        return [most] * count
    drawn = random_stream(config.seed, f"bench {purpose}").lognormal(np.log(most * MEDIAN), SPREAD, count)
    return [int(length) for length in np.clip(drawn, min(LEAST, most), most)]


def draw_texts(config: Config, purpose: str, count: int, most: int) -> list[list[int]]:
    """`count` texts of random ids."""
    source = random_stream(config.seed, f"bench {purpose} ids")
    return [source.integers(*IDS, length).tolist() for length in draw_lengths(config, purpose, count, most)]


def prompts(config: Config, device: torch.device) -> PromptBatch:
    """Return this rank's prompts of a rollout, with the lengths of their answers where these are drawn."""
    count, most, copies = config.ppo.rollout_batch_size, config.rollout.max_new_tokens, config.rollout.samples_per_prompt
    texts = draw_texts(config, "prompts", count // copies, config.data.max_prompt_tokens)
    own = local_share(list(range(count)), rank(), ranks(config))
    limits = None
    if config.bench.lengths == "real":
        lengths = draw_lengths(config, "answers", count, most)
        limits = torch.tensor([lengths[number] for number in own], device=device)
    asked = [texts[number // copies] for number in own[::copies]]
    return replace(prompt_batch(asked, own, 0, device, copies), limits=limits)


def demonstrations(config: Config, count: int, purpose: str = "demonstrations") -> list[Encoded]:
    """Return this rank's share of `count` prompts with responses."""
    asked = draw_texts(config, f"{purpose}: prompts", count, config.data.max_prompt_tokens)
    said = draw_texts(config, f"{purpose}: responses", count, config.data.max_response_tokens)
    pairs = [Encoded(prompt, response) for prompt, response in zip(asked, said, strict=True)]
    return local_share(pairs, rank(), ranks(config))


def comparisons(config: Config, count: int) -> list[list[tuple[Encoded, Encoded]]]:
    """Return this rank's share of `count` prompts with two responses each."""
    better, other = (demonstrations(config, count, purpose) for purpose in ("chosen", "rejected"))
    return [[(first, Encoded(first.prompt, second.response))] for first, second in zip(better, other, strict=True)]
