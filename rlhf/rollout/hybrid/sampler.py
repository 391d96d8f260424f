"""The sampler of the decode loop."""

from typing import Any

import torch
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch
from rlhf.planner.cache import next_size
from rlhf.rollout.base import Part, Responses, evaluation_mode, generate_in_parts
from rlhf.rollout.hybrid.decoder import Decoder
from rlhf.rollout.weights import RolloutWeights


class HybridSampler:
    """Samples from the training weights by the decode loop of decoder.py. Its decoder, with the cache and the captured
    graphs, is kept for the next rollout."""

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> None:
        self.engine, self.tokenizer, self.rollout = engine, tokenizer, rollout
        self.weights = RolloutWeights(engine, rollout)
        self.decoder: Decoder | None = None

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
        owners = torch.arange(len(prompts.samples), device=prompts.ids.device) // prompts.copies  # [B]
        with evaluation_mode(self.engine), self.weights.in_place() as together:

            def sample(rows: Tensor, draws: Tensor) -> Part:
                batch = prompts.rows(rows)
                return self.fitting_decoder(batch, together).run(batch, owners[rows], draws)

            responses = generate_in_parts(prompts, draws, self.rollout, sample)
        if self.rollout.release_cache:
            self.release()
        return responses

    def fitting_decoder(self, prompts: PromptBatch, together: bool) -> Decoder:
        """Return the last decoder if it can serve these prompts, or make a new one in its place; `together` if ranks go
        through each forward pass together."""
        count, longest, device = len(prompts.samples), int(prompts.lengths.max()), prompts.ids.device
        known, self.decoder = self.decoder, None
        if known is None or not known.serves(count, longest, together):
            del known  # before another cache is made
            rows = next_size(count) if device.type == "cuda" else count
            known = Decoder(self.engine.module, rows, longest, self.tokenizer, self.rollout, together, device)
        self.decoder = known
        return known
