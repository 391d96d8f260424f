"""The sampler of the decode loop."""

from typing import Any

from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch
from rlhf.planner.cache import next_size
from rlhf.rollout.base import Part, PromptPart, Responses, evaluation_mode, generate_in_parts
from rlhf.rollout.hybrid.decoder import Decoder
from rlhf.rollout.weights import RolloutWeights


class HybridSampler:
    """Samples from the training weights by the decode loop of decoder.py. Its decoder, with the cache and the captured
    graphs, is kept for the next rollout, and made for prompts of up to `longest_prompt` tokens."""

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> None:
        self.engine, self.tokenizer, self.rollout = engine, tokenizer, rollout
        self.weights = RolloutWeights(engine, rollout)
        self.decoder: Decoder | None = None
        self.longest_prompt = 0

    @staticmethod
    def problem(config: Config) -> ConfigError | None:
        """Return None: the decode loop serves every configuration."""
        return None

    def sync(self) -> None:
        """Gather the weights of a sharded model, if they fit."""
        self.weights.sync()

    def release(self) -> None:
        """Free the cache, the graphs and the gathered weights."""
        self.decoder = None
        self.weights.release()

    def generate(self, prompts: PromptBatch, draws: Tensor) -> Responses:
        """Answer prompts by the draws [B, max_new_tokens], part by part; copies of a prompt are read once."""
        with evaluation_mode(self.engine), self.weights.in_place() as together:

            def sample(part: PromptPart) -> Part:
                owners = [row // prompts.copies for row in part.rows]
                return self.fitting_decoder(part, together).run(part, owners)

            responses = generate_in_parts(prompts, draws, self.rollout, sample)
        if self.rollout.release_cache:
            self.release()
        return responses

    def fitting_decoder(self, part: PromptPart, together: bool) -> Decoder:
        """Return the last decoder if it can serve these prompts, or make a new one in its place; `together` if ranks go
        through each forward pass together."""
        count, longest, device = len(part.rows), max(part.lengths), part.prompts.ids.device
        known, self.decoder = self.decoder, None
        if known is None or not known.serves(count, longest, together):
            del known  # before another cache is made
            rows = count
            if device.type == "cuda":  # what a later batch may need, so that graphs serve it too
                rows, longest = next_size(count), max(longest, self.longest_prompt)
            known = Decoder(self.engine.module, rows, longest, self.tokenizer, self.rollout, together, device)
        self.decoder = known
        return known
