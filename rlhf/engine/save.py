"""Writing models so that plain `transformers` (and PEFT) load them, one weight at a time."""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rlhf.config.schema import Lora
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates.jinja import find_end_ids
from rlhf.models.adapters import record_base
from rlhf.models.heads import ScalarHeadModel
from rlhf.models.lora import adapter_names, base_model, is_adapter, merge_lora_weight, plain_name
from rlhf.runtime.compat.deepspeed import is_partitioned, whole_shape
from rlhf.runtime.compat.transformers import commit_of
from rlhf.runtime.distributed import barrier, is_main

# Of one file; weights are gathered one at a time, so that no process holds a model to save it.
FILE_BYTES = 5 * 2**30
SAFETENSORS_DTYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


Read = Callable[[Any], Tensor]
# A tensor to be written: its name, format and shape, and what gives it when its turn comes.
Writable = tuple[str, torch.dtype, Sequence[int], Callable[[], Tensor]]


def whole_weight(parameter: Any) -> Tensor:
    """Return a weight on the host, gathered if it is sharded; its value counts on rank 0 alone. Where it is on the host
    and whole already, that very tensor."""
    sharded = is_partitioned(parameter)
    with deepspeed.zero.GatheredParameters([parameter] if sharded else [], enabled=sharded):
        weight: Tensor = parameter.detach()
        if not is_main():
            return weight[:0].cpu()
        return weight.cpu().clone() if sharded else weight.cpu().contiguous()


def save_model(
    engine: Any, tokenizer: Tokenizer, lora: Lora, directory: Path, card: str, read: Read = whole_weight
) -> None:
    """Save an engine's model with its configuration, the whole tokenizer and a model card.

    Adapters are merged into the model, and saved in PEFT's format beside `directory`; with lora.save_merged off
    they are all that `directory` holds. A directory appears when it is complete. `read` gives a parameter's value, whole.
    All ranks must call this.
    """
    if hasattr(engine, "empty_partition_cache"):  # a benchmark saves a model by itself
        # At ZeRO 3 a weight that the last forward pass has begun to gather ahead cannot be gathered by itself.
        engine.empty_partition_cache()
    set_ends(plain_module(engine), tokenizer)
    if lora.rank > 0:
        path = adapter_directory(directory) if lora.save_merged else directory
        with replace_directory(path) as unfinished:
            write_adapter(engine, unfinished, read)
            write_texts(tokenizer, card.replace("library_name: transformers", "library_name: peft", 1), unfinished)
    if lora.rank == 0 or lora.save_merged:
        with replace_directory(directory) as unfinished:
            write_model(engine, lora, unfinished, read)
            write_texts(tokenizer, card, unfinished)


def adapter_directory(directory: Path) -> Path:
    """Return the directory of a merged model's adapters: `adapter` beside model/, `<name>-adapter` beside another
    directory."""
    return directory.with_name("adapter" if directory.name == "model" else f"{directory.name}-adapter")


class replace_directory:
    """A directory that is filled under another name and then takes the place of an older one, on rank 0."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.partial = directory, directory.with_name(directory.name + ".partial")

    def __enter__(self) -> Path:
        if is_main():
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and is_main():
            shutil.rmtree(self.directory, ignore_errors=True)
            os.replace(self.partial, self.directory)
        if kind is None:
            barrier()
        elif is_main():
            shutil.rmtree(self.partial, ignore_errors=True)


def set_ends(model: Any, tokenizer: Tokenizer) -> None:
    """Have transformers' generate end a response at whatever ends one: where the chat template has a token that ends a
    turn, at this too."""
    ends = find_end_ids(tokenizer)
    if model.can_generate() and len(ends) > 1:
        model.generation_config.eos_token_id = list(ends)


def write_texts(tokenizer: Tokenizer, card: str, directory: Path) -> None:
    """Write the tokenizer and the model card."""
    if is_main():
        tokenizer.save_pretrained(directory)
        (directory / "README.md").write_text(card)


@dataclass(frozen=True)
class Entry:
    """A weight of the plain model: its name there, the parameter, and the adapter's factors A and B to merge into it."""

    name: str
    parameter: Any
    factors: tuple[Any, Any] | None
    transposed: bool

    @property
    def shape(self) -> list[int]:
        """The shape of the whole weight."""
        return list(whole_shape(self.parameter))

    @property
    def bytes(self) -> int:
        """The bytes of the whole weight."""
        return math.prod(self.shape) * int(self.parameter.element_size())

    def value(self, lora: Lora, read: Read) -> Tensor:
        """Return the weight, whole and on the host of rank 0; all ranks must ask for it."""
        weight = read(self.parameter)
        if self.factors is None:
            return weight
        a, b = (read(factor) for factor in self.factors)
        return merge_lora_weight(weight, a, b, lora.alpha / lora.rank, self.transposed) if is_main() else weight


def write_model(engine: Any, lora: Lora, directory: Path, read: Read) -> None:
    """Write the plain model: configuration, and weights in numbered files with an index if one file is not enough."""
    model, files = plain_module(engine), split_into_files(list_entries(engine, lora))
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    for name, part in zip(names, files, strict=True):
        weights = [(e.name, e.parameter.dtype, e.shape, partial(e.value, lora, read)) for e in part]
        write_tensors(directory / name if is_main() else Path(os.devnull), weights)  # type: ignore[arg-type]
    if not is_main():
        return
    if len(files) > 1:
        placed = {entry.name: name for name, part in zip(names, files, strict=True) for entry in part}
        index = {"metadata": {"total_size": sum(entry.bytes for part in files for entry in part)}, "weight_map": placed}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def write_tensors(file: Path, tensors: list[Writable]) -> None:
    """Write a safetensors file tensor by tensor: the length of its header, the header (JSON: format, shape and offsets of
    each tensor), the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for *_, value in tensors:
            stream.write(value().contiguous().view(-1).view(torch.uint8).numpy().data)


def split_into_files(found: list[Entry]) -> list[list[Entry]]:
    """Split weights, in order, into groups of at most FILE_BYTES, or of a single larger weight."""
    files: list[list[Entry]] = [[]]
    for entry in found:
        if files[-1] and sum(other.bytes for other in files[-1]) + entry.bytes > FILE_BYTES:
            files.append([])
        files[-1].append(entry)
    return files


def list_entries(engine: Any, lora: Lora) -> list[Entry]:
    """List the weights of the plain model inside an engine; a weight that two layers share is listed once."""
    model = adapted_module(engine)
    parameters = dict(model.named_parameters())
    found = []
    for name, parameter in parameters.items():
        if is_adapter(name) or ".original_module." in name:
            continue
        a, b = (parameters.get(factor) for factor in adapter_names(name))
        adapted = name.endswith(".base_layer.weight") and a is not None and b is not None
        transposed = adapted and isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)
        found.append(Entry(plain_name(name) if lora.rank else name, parameter, (a, b) if adapted else None, transposed))
    return found


def write_adapter(engine: Any, directory: Path, read: Read) -> None:
    """Write the adapters (and a scorer's head) as PEFT's from_pretrained reads them."""
    from peft import get_peft_model_state_dict

    state = {
        name: read(parameter)
        for name, parameter in adapted_module(engine).named_parameters()
        if is_adapter(name) or ".modules_to_save." in name
    }
    if is_main():
        model = adapted_module(engine)
        state = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        save_file(state, directory / "adapter_model.safetensors", {"format": "pt"})
        settings = model.peft_config["default"]
        record_base(settings, commit_of(plain_module(engine).config), directory)
        settings.inference_mode = True
        if not isinstance(settings.target_modules, str):
            settings.target_modules = sorted(settings.target_modules or ())  # a set, whose order differs between processes
        settings.save_pretrained(directory)
        settings.inference_mode = False


def adapted_module(engine: Any) -> Any:
    """Return the model inside an engine as transformers or PEFT made it."""
    return engine.module.classifier if isinstance(engine.module, ScalarHeadModel) else engine.module


def plain_module(engine: Any) -> Any:
    """Return the transformers model inside an engine, without adapters and wrappers."""
    return base_model(adapted_module(engine))
