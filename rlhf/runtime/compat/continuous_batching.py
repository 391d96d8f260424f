"""The inside of transformers' continuous batching, which has no public place for a sampler of one's own. Tried on
transformers 5.17 to 5.24."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from rlhf.runtime.compat.transformers import attention_name

LOGGER = "ContinuousBatchingLogger"


class RequestProcessor(ContinuousBatchingLogitsProcessor):
    """The interface of a processor that chooses tokens for the requests of a running batch, by one number of each request:
    `fill_defaults` gives the number of padding, `prepare_tensor_args` those of requests, and a call gets them with the
    logits [N, V]. Requests pass it no options."""

    def __init__(self) -> None:
        self.supported_kwargs, self.ignored_kwargs = {}, ()


def add_cache_length() -> None:
    """Give the paged cache the method `get_seq_length`. OPT asks its cache for it since transformers 5.24, and where it is
    given positions it does not use the answer."""
    if not hasattr(PagedAttentionCache, "get_seq_length"):
        setattr(PagedAttentionCache, "get_seq_length", lambda self, layer_idx=0: 0)  # noqa: B010


def use_processor(manager: Any, processor: RequestProcessor) -> None:
    """Let a manager choose tokens by this processor alone; it has one number for each request."""
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([processor]))
    manager.logit_processor.tensors_required = 1


def failure_of(manager: Any) -> BaseException | None:
    """Return the error that ended a manager's thread, if one did."""
    error: BaseException | None = manager.background_thread_status.fatal_error
    return error


@contextmanager
def managed_attention(model: Any, attention: Any) -> Iterator[Any]:
    """Let a model call `attention` under a name that the manager accepts, and the manager logs nothing: its errors are
    raised."""
    add_cache_length()
    former, logger = attention_name(model), logging.getLogger(LOGGER)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    if former not in ("sdpa", "eager"):
        model.set_attn_implementation("sdpa")
    AttentionInterface.register("sdpa", attention)
    try:
        yield model
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)
        if attention_name(model) != former:
            model.set_attn_implementation(former)
        logger.setLevel(level)
