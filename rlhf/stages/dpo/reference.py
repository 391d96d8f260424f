"""The reference's log-probabilities of items: read once, and kept beside the tokenised data for all stages that start from
the same model and read the same items."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import rlhf
from rlhf.config.schema import Config
from rlhf.data.artifact import artifact_path, make_once, read_info
from rlhf.data.loaders import all_batches, total_steps
from rlhf.runtime.distributed import gather
from rlhf.stages.dpo.items import Item, Items, Selected, Sums
from rlhf.stages.inputs import identify_model

FILE = "logprobs.npy"
# Reads items under the reference, on all ranks together.
Read = Callable[[Sequence[Item]], list[Sums]]


def add_reference(config: Config, policy: str, train: Items, heldout: Items, read: Read) -> None:
    """Give the training items that any step reads, and all held-out items, the reference's log-probabilities.

    The reference is the policy before its first step, so it reads the items before training, and no second model is held.

    Args:
        config: The configuration.
        policy: The directory or hub id of the policy that training starts from.
        train: The training items.
        heldout: The held-out items.
        read: Reads items under the policy as it is.
    """
    model = identify_model(policy, "dpo.policy")
    for items, numbers in ((train, list_read(config, len(train))), (heldout, list(range(len(heldout))))):
        items.reference = open_logprobs(config, model, items, items.match, numbers, read)
        if items.others is not None:
            items.mismatched_reference = open_logprobs(config, model, items, items.mismatch, numbers, read)


def list_read(config: Config, count: int) -> list[int]:
    """Return the numbers of the training items that the reference reads: those that any step reads, or, where that is most
    of them, all, so that runs in another order find them too."""
    size, key = config.dpo.batch_size, "dpo.batch_size"
    steps = total_steps(count, size, config.dpo.epochs, config.dpo.max_steps, key)
    numbers = {number for batch in all_batches(count, size, config.seed, key, steps) for number in batch}
    return list(range(count)) if 2 * len(numbers) > count else sorted(numbers)


def open_logprobs(
    config: Config, model: list[Any], items: Items, item: Callable[[int], Item], numbers: list[int], read: Read
) -> dict[int, Sums]:
    """Return the reference's log-probabilities of the items of these numbers, by their numbers, after reading them if
    nobody has. All ranks call this. Two runs that read the same items at the same time both go on with the numbers of the
    one that ended first."""
    rows = None if len(numbers) == len(items) else hashlib.sha256(str(numbers).encode()).hexdigest()
    content = {
        "model": model, "data": items.rows.path.name, "rows": rows, "mismatched": item == items.mismatch,
        "dtype": config.precision.dtype, "reader": identify_reader(),
    }  # fmt: skip
    path = artifact_path(config, "reference", content)
    is_made = gather(read_info(path) is not None)[0]
    found = [] if is_made else read(Selected(item, numbers))

    def make(place: Path) -> dict[str, Any]:
        np.save(place / FILE, np.array(found, dtype=np.float64))
        return {"items": len(found)}

    make_once(config, path, make)
    return {number: tuple(sums) for number, sums in zip(numbers, np.load(path / FILE).tolist(), strict=True)}


@cache
def identify_reader() -> str:
    """Return a hash of the code that reads log-probabilities, and of the versions of the libraries that it calls."""
    root = Path(rlhf.__file__).parent
    files = [*sorted((root / "models").rglob("*.py")), *(root / "algo" / name for name in ("logprobs.py", "masked.py"))]
    digest = hashlib.sha256(f"torch {version('torch')}, transformers {version('transformers')}".encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
