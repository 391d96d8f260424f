"""Writing a model so that plain `transformers` loads it."""

import os
import shutil
from pathlib import Path
from typing import Any

from rlhf.config.schema import Config
from rlhf.data.tokens import Tokenizer
from rlhf.engine.distributed import barrier, is_main
from rlhf.engine.zero import gathered_state
from rlhf.models.heads import Scorer
from rlhf.models.lora import base_model, merged_state


def save_model(engine: Any, tokenizer: Tokenizer, config: Config, directory: Path) -> None:
    """Save an engine's model as safetensors with its configuration and the whole tokenizer; adapters are merged.

    The directory appears when it is complete. All ranks must call this.
    """
    state = gathered_state(engine)
    if is_main():
        module = engine.module.classifier if isinstance(engine.module, Scorer) else engine.module
        state = {name.removeprefix("classifier."): tensor for name, tensor in state.items()}
        if config.lora.rank > 0:
            state = merged_state(state, config.lora)
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        base_model(module).save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)
    barrier()
