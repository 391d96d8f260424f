"""Reading a model's weights one at a time, from safetensors or PyTorch files."""

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.hub import REACH_S
from rlhf.experiment.tensor_files import index_of_shards, open_tensors, tensor_names
from rlhf.models.lora import PREFIX
from rlhf.models.source import Source

# What transformers has renamed since checkpoints were written.
RENAMED = {"lm_head.weight": "embed_out.weight"}


def safetensors_names(path: Path) -> set[str] | None:
    """Return the names of the weights in a directory's safetensors files, of adapters as the plain model has them; None if
    there are none."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    adapters = path / "adapter_model.safetensors"
    if index.is_file():
        return set(index_of_shards(index))
    if single.is_file():
        return tensor_names(single)
    if adapters.is_file():
        return {name.removeprefix(PREFIX) for name in tensor_names(adapters)}
    return None


class Checkpoint:
    """The files of a model: the `names` of its weights, and the weights one at a time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.directory = local_files(source)
        self.files = self.index()
        self.names = set(self.files)

    def index(self) -> dict[str, Path]:
        """Return the file of each weight."""
        for stem in ("model.safetensors", "pytorch_model.bin"):
            index, single = self.directory / f"{stem}.index.json", self.directory / stem
            if index.is_file():
                return {name: self.directory / file for name, file in index_of_shards(index).items()}
            if single.is_file():
                return dict.fromkeys(self.open(single).keys(), single)
        raise ConfigError(
            self.source.key,
            self.source.path,
            "there are no weights",
            "give one with model.safetensors or pytorch_model.bin",
        )

    def open(self, file: Path) -> Any:
        """Open a file's weights by name, mapped into memory; nothing is unpickled but tensors."""
        if file.suffix == ".safetensors":
            return open_tensors(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))

    def find(self, name: str, prefix: str) -> str | None:
        """Return the stored name of a model's weight: checkpoints have or lack the prefix of the body, as they were saved
        with or without a head."""
        bare = name.removeprefix(f"{prefix}.")
        for candidate in (name, bare, f"{prefix}.{name}", RENAMED.get(name)):
            if candidate in self.files:
                return candidate
        return None

    def read(self, name: str, empty: Tensor) -> Tensor:
        """Read a weight, in the format of `empty`. Raises ConfigError if its shape is another."""
        opened = self.open(self.files[name])
        stored = opened.get_tensor(name) if hasattr(opened, "get_tensor") else opened[name]
        if stored.shape != empty.shape:
            problem = f"{name} is {tuple(stored.shape)}, its configuration says {tuple(empty.shape)}"
            raise ConfigError(self.source.key, self.source.path, problem, "give weights that belong to the configuration")
        copied: Tensor = stored.to(empty.dtype, copy=True)
        return copied


def local_files(source: Source) -> Path:
    """Return the directory of a model's files, downloaded if it is a hub id (by one rank of a machine at a time)."""
    if Path(source.name_or_path).is_dir():
        return Path(source.name_or_path)
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(source.path, revision=source.revision, timeout=REACH_S).siblings or []
    except Exception:  # the hub cannot be reached (its client's errors are no public names): what was downloaded before
        return Path(snapshot_download(source.path, revision=source.revision, local_files_only=True))
    files = [file.rfilename for file in found]
    safe = {"model.safetensors", "model.safetensors.index.json"} & set(files)
    kind = "model*.safetensors*" if safe else "pytorch_model*.bin*"
    return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=[kind, "config.json"]))
