"""The pre-training loss that PPO-ptx adds to the actor's updates (arXiv 2203.02155, section 3.5)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.config.derive import Batches, max_sequence
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key, keys_of
from rlhf.config.schema import Config
from rlhf.data.artifact import artifact_path, check_planned, make_once
from rlhf.data.files import expect_hashes
from rlhf.data.hub import identify_split
from rlhf.data.loaders import local_share
from rlhf.data.row_encoder import TextEncoder
from rlhf.data.templates import Template
from rlhf.data.text import load_texts
from rlhf.data.tokenized import DataSource, Demonstrations, identify_tokenizer, write_data
from rlhf.data.tokens import SequenceBatch, right_mask, sequence_batch
from rlhf.experiment.fingerprint import identify_value
from rlhf.runtime.distributed import rank
from rlhf.runtime.seeds import random_stream


def open_texts(config: Config, template: Template) -> Demonstrations:
    """Return the texts that `ppo.ptx` names as token ids, each with the end-of-text token, cut at the longest sequence that
    PPO trains on; they are made once. Raises ConfigError for what cannot be read, and where there is no text."""
    ptx, limit, source = config.ppo.ptx, max_sequence(config), DataSource(config)
    known = {name: key for name, key in keys_of(type(config)).items() if name.startswith("ppo.ptx.")}
    named = {name: identify_value(get_key(config, name), name, key.content) for name, key in known.items()}
    check_planned(config, named)
    content = {"texts": named, "tokenizer": identify_tokenizer(template.tokenizer), "limit": limit}
    if ptx.source == "demonstrations":
        content["data"] = source.identity
    if ptx.source == "hub":
        content["hub"] = identify_split(str(ptx.hub), ptx.config, ptx.split, ptx.revision, None, "ppo.ptx.hub")
    path = artifact_path(config, "texts", content)

    def make(place: Path) -> dict[str, Any]:
        if ptx.source == "demonstrations":
            texts: list[Any] = source.dataset.train.demonstrations
        else:
            with expect_hashes({key: value for key, value in named.items() if key == "ppo.ptx.file" and value}):
                texts = load_texts(ptx)
        return write_data(place, "texts", texts, TextEncoder(template, limit))

    found = Demonstrations(path, make_once(config, path, make))
    if not len(found):
        raise ConfigError("ppo.ptx.source", ptx.source, "it has no text", "check ppo.ptx.column")
    return found


class Texts:
    """Texts as token ids; for each update of the actor as many as it has sequences."""

    def __init__(self, config: Config, template: Template, plan: Batches, device: torch.device) -> None:
        self.config, self.plan, self.device, self.pad = config, plan, device, int(template.tokenizer.pad_token_id)
        self.items = open_texts(config, template)

    def count_cut(self) -> dict[str, float]:
        """Metrics: how many texts there are, and how many of them were cut at the longest sequence."""
        return {"data/texts": float(len(self.items)), "data/texts_cut": float(self.items.counted.cut)}

    def batches(self, update: int) -> tuple[list[SequenceBatch], float]:
        """Return this rank's micro-batches of texts for an update, and the number of tokens that all ranks predict in
        it."""
        size = self.plan.ranks * self.plan.per_rank
        order = random_stream(self.config.seed, "ptx", update).integers(len(self.items), size=size).tolist()
        count = sum(int(self.items.sizes[i]) - 1 for i in order)
        own = [self.items[i] for i in local_share(order, rank(), self.plan.ranks)]
        parts = [own[start : start + self.plan.micro] for start in range(0, len(own), self.plan.micro)]
        return [sequence_batch(part, self.pad, self.device) for part in parts], float(count)


def count_predicted_tokens(batch: SequenceBatch) -> Tensor:
    """[B, T - 1] mask of the tokens that a text's loss covers: all but the first."""
    return right_mask(batch.lengths, batch.ids.size(1))[:, 1:]
