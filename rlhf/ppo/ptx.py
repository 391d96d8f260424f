"""The pre-training loss that PPO-ptx adds to the actor's updates (arXiv 2203.02155, section 3.5)."""

import torch
from torch import Tensor

from rlhf.config.derive import Batches, max_sequence
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.data.encode import encode_whole
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import local_share
from rlhf.data.records import load_dataset
from rlhf.data.templates import Template
from rlhf.data.text import load_texts
from rlhf.data.tokens import SequenceBatch, right_mask, sequence_batch
from rlhf.runtime.distributed import rank
from rlhf.runtime.seeds import random_stream


class Texts:
    """Texts as token ids; for each update of the actor as many as it has sequences."""

    def __init__(self, config: Config, template: Template, plan: Batches, device: torch.device) -> None:
        self.config, self.plan, self.device, self.pad = config, plan, device, int(template.tokenizer.pad_token_id)
        limit = max_sequence(config)
        if config.ppo.ptx.source == "demonstrations":
            encoded = encode_whole(load_dataset(config).train.demonstrations, template)
        else:
            encoded = [template.encode_text(text) for text in load_texts(config.ppo.ptx)]
        self.items = [Encoded([], ids[:limit], cut=len(ids) > limit) for ids in encoded if len(ids) > 1]
        if not self.items:
            raise ConfigError("ppo.ptx.source", config.ppo.ptx.source, "it has no text", "check ppo.ptx.column")

    def count_cut(self) -> dict[str, float]:
        """Metrics: how many texts there are, and how many of them were cut at the longest sequence."""
        return {"data/texts": float(len(self.items)), "data/texts_cut": float(sum(item.cut for item in self.items))}

    def batches(self, update: int) -> tuple[list[SequenceBatch], float]:
        """Return this rank's micro-batches of texts for an update, and the number of tokens that all ranks predict in
        it."""
        size = self.plan.ranks * self.plan.per_rank
        order = random_stream(self.config.seed, "ptx", update).integers(len(self.items), size=size).tolist()
        count = sum(len(self.items[i].response) - 1 for i in order)
        own = [self.items[i] for i in local_share(order, rank(), self.plan.ranks)]
        parts = [own[start : start + self.plan.micro] for start in range(0, len(own), self.plan.micro)]
        return [sequence_batch(part, self.pad, self.device) for part in parts], float(count)


def count_predicted_tokens(batch: SequenceBatch) -> Tensor:
    """[B, T - 1] mask of the tokens that a text's loss covers: all but the first."""
    return right_mask(batch.lengths, batch.ids.size(1))[:, 1:]
