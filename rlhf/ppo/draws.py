"""Dynamic sampling: groups whose scores differ are kept, draw by draw, until a rollout is full."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.algo.groups import varies
from rlhf.config.schema import Config
from rlhf.ppo.experience import ScoredSamples, columns_of, concatenate, from_all_ranks, select
from rlhf.runtime.distributed import rank, world


class Draws:
    """The samples of the present rollout that were kept so far, of all ranks and alike on all of them (DAPO, arXiv
    2503.14476, section 3.2). Scores are compared as the reward model gives them, before any shaping.

    Attributes:
        count: The draws of the present rollout so far.
        kept: What is kept of them.
        lengths: Tokens of each prompt and response that this rank drew for the present or the last rollout, of those too
            that were not kept: they cost as much.
    """

    def __init__(self, config: Config) -> None:
        self.size, self.copies = config.ppo.rollout_batch_size, config.rollout.samples_per_prompt
        self.most = config.ppo.max_draws
        self.count = 0
        self.kept: ScoredSamples | None = None
        self.lengths: list[tuple[int, int]] = []

    def add(self, drawn: ScoredSamples) -> bool:
        """Keep what is of use of this rank's draw and of the others'; returns whether the rollout is full. All ranks must
        call this. Raises RuntimeError if it is not full after `ppo.max_draws`."""
        sizes = torch.stack([drawn.prompt_mask.sum(1), drawn.mask.sum(1)], dim=1).tolist()
        self.lengths = [*(self.lengths if self.count else []), *((prompt, response) for prompt, response in sizes)]
        self.count += 1
        whole = from_all_ranks(drawn)
        compared = whole.scores if whole.group_scores is None else whole.group_scores
        useful = varies(compared, self.copies, whole.is_scored).repeat_interleave(self.copies)
        found = select(whole, lambda column: column[useful])
        self.kept = found if self.kept is None else concatenate([self.kept, found])
        number = len(self.kept.scores)
        if number < self.size and self.count >= self.most:
            raise RuntimeError(
                f"ppo.max_draws={self.most}: after as many draws of prompts only {number} of {self.size} responses are in "
                "groups whose scores differ; raise it, or set ppo.dynamic_sampling=false"
            )
        return number >= self.size

    def take(self) -> tuple[ScoredSamples, float]:
        """Return this rank's share of the full rollout, what is too many left out, and how many draws it took; and begin
        the next one."""
        assert self.kept is not None
        share = self.size // world()
        rows = torch.arange(rank() * share, (rank() + 1) * share, device=self.kept.scores.device)
        taken, count = select(self.kept, lambda column: column[rows]), float(self.count)
        self.count, self.kept = 0, None
        return taken, count

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept, for a checkpoint."""
        return {} if self.kept is None else columns_of(self.kept)

    def load_state(self, count: int, tensors: dict[str, Tensor], lengths: Sequence[Sequence[int]]) -> None:
        """Go on after so many draws, of these `lengths`, with what was kept of them."""
        self.lengths = [(prompt, response) for prompt, response in lengths]
        self.count, self.kept = count, ScoredSamples(**tensors) if tensors else None
