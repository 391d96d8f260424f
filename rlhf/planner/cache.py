"""The shape of a rollout's key-value cache, and the prompts that are read to fill it: samplers make it, plans count it.

Pure: no torch.
"""

from collections.abc import Sequence

from rlhf.config.schema import Config, Rollout

# The decode loop's cache is read up to a multiple of so many slots, by device: on a GPU each has a graph of its own.
SLOTS = {"cpu": 32, "cuda": 128}
# The tokens of prompts that the decode loop reads in one pass, at most.
PREFILL_TOKENS = 2**14
# The decode loop packs the weights of models of so many parameters, on a CPU in fp32 (models/step/packed.py): smaller ones
# lie in the processor's cache, and copies of larger ones take too much memory. It pays for so many rows and steps.
PACKED_PARAMETERS, PACKED_ROWS, PACKED_STEPS = range(2**24, 2**30), 4, 16
# Tokens of a page of continuous batching's cache, transformers' default.
PAGE = 256
# Samplers that read a prompt once for all its responses, and those that sample with adapters merged into the weights.
READ_ONCE, MERGE_ADAPTERS = ("hybrid",), ("hybrid", "paged")


def next_size(rows: int) -> int:
    """Return the smallest batch size for so many rows: powers of two, and the sizes half-way between them."""
    power = 1 << max(0, rows - 1).bit_length()
    between = power * 3 // 4
    return between if rows <= between and power >= 8 else power


def round_up(number: int, unit: int) -> int:
    """Return the next multiple of a unit."""
    return -(-number // unit) * unit


def cached_tokens(rollout: Rollout, device: str, rows: int, tokens: int) -> int:
    """Return the tokens that the cache of so many rows of prompts and responses of `tokens` tokens has room for."""
    if rollout.engine == "hybrid":
        return (next_size(rows) if device == "cuda" else rows) * round_up(tokens, SLOTS[device])
    return rows * (round_up(tokens, PAGE) if rollout.engine == "paged" else tokens)


def packs_weights(rollout: Rollout, device: str, is_fp32: bool, parameters: int, rows: int) -> bool:
    """Whether a rollout of so many rows packs the weights of a model of so many parameters."""
    is_served = rollout.engine == "hybrid" and rollout.tensor_parallel == 1 and device == "cpu" and is_fp32
    pays = rows >= PACKED_ROWS and rollout.max_new_tokens >= PACKED_STEPS
    return is_served and pays and parameters in PACKED_PARAMETERS


def copies_read_once(rollout: Rollout) -> int:
    """Return how many responses to a prompt share one reading of it."""
    return rollout.samples_per_prompt if rollout.engine in READ_ONCE else 1


def list_prompts_read(rollout: Rollout, prompts: Sequence[int]) -> list[int]:
    """Return the tokens of each prompt that is read, of a rank's `prompts`, one for each response.

    Copies of a prompt, which lie side by side, are read once by samplers that share them, unless they are sampled in
    different parts: the longest prompts first, `rollout.micro_batch_size` responses at a time.
    """
    copies, rows = copies_read_once(rollout), rollout.micro_batch_size
    size = rows if isinstance(rows, int) else len(prompts)
    if copies == 1:
        return list(prompts)
    if size >= len(prompts):
        return sorted(prompts[::copies], reverse=True)
    order = sorted(range(len(prompts)), key=lambda row: -prompts[row])
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [prompts[owner * copies] for part in parts for owner in dict.fromkeys(row // copies for row in part)]


def count_prefilled(rollout: Rollout, rows: int, prompt: int, together: bool) -> int:
    """Return the tokens of prompts that are read in one pass, at most, where so many rows are sampled at a time.

    `together`: ranks go through each pass together, and read all prompts in one.
    """
    distinct = min(rows, -(-rows // copies_read_once(rollout)) + 1) if copies_read_once(rollout) > 1 else rows
    if rollout.engine != "hybrid" or together:
        return distinct * prompt
    return min(distinct, max(1, PREFILL_TOKENS // prompt)) * prompt


def samples_merged(config: Config) -> bool:
    """Whether responses are sampled from weights into which adapters are merged: not where layers are gathered one by one,
    nor by samplers that know nothing of them."""
    rollout = config.rollout
    layerwise = config.zero.stage == 3 and rollout.gather == "layers" and rollout.tensor_parallel == 1
    return rollout.engine in MERGE_ADAPTERS and not layerwise
