"""The held-out answers of the policy that training starts from: given once, and kept beside the tokenised data for all
stages that would give the same, as the points of a sweep over how the policy learns."""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.keys import matches_prefix
from rlhf.config.rewards import reward_terms
from rlhf.config.schema import Config
from rlhf.data.artifact import artifact_path, make_once, read_info
from rlhf.evaluation.heldout import Answer
from rlhf.experiment.fingerprint import code_hash, result_config
from rlhf.experiment.spec import Spec
from rlhf.runtime.distributed import gather, world
from rlhf.stages.inputs import identify_model

FILE = "answers.json"
LIBRARIES = ("torch", "deepspeed", "transformers", "numpy")


def give_once(spec: Spec, prompts: str, give: Callable[[], list[Answer]]) -> list[Answer]:
    """Return the answers that `give` gives, on every rank, or those that an earlier stage kept. All ranks must call this.
    `prompts` is the name of the held-out prompts among tokenised data."""
    content = identify_answers(spec, prompts)
    if content is None:
        return give()
    path = artifact_path(spec.config, "answers", content)
    is_made = gather(read_info(path) is not None)[0]
    found = [] if is_made else give()

    def make(directory: Path) -> dict[str, Any]:
        (directory / FILE).write_text(json.dumps([asdict(answer) for answer in found]))
        return {"answers": len(found)}

    make_once(spec.config, path, make)
    return [Answer(**kept) for kept in json.loads((path / FILE).read_text())]


def identify_answers(spec: Spec, prompts: str) -> dict[str, Any] | None:
    """Return all that decides the answers and their scores, but for rounding: what decides the stage without how the policy
    learns, the files of its models, the device and the code. None where it cannot be known: models that no stage has saved
    may change, and so may what a function or a service says."""
    config, learning = spec.config, kind_of(spec.stage).section
    models = {name: identify_model(path, name) for name, path in sorted(spec.inputs.items())}
    if learning is None or not judges_alike(config) or any(files is None for _, files in models.values()):
        return None
    decided = result_config(config, spec.stage)
    return {
        "decided": {key: value for key, value in decided.items() if not matches_prefix(key, (learning,))},
        "models": models, "prompts": prompts, "rollout": asdict(config.rollout), "precision": asdict(config.precision),
        "machine": [config.hardware.device, config.hardware.gpu, world()],
        "code": [code_hash(), *map(version, LIBRARIES)],
    }  # fmt: skip


def judges_alike(config: Config) -> bool:
    """Whether answers are judged by models and the package's own functions alone, which judge the same each time."""
    return all(term.kind in ("model", "ensemble") for term in reward_terms(config).values()) and ":" not in (
        config.gold or ""
    )
