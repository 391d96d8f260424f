"""What an evaluation of reward models leaves in its directory, as a stage or by `python -m rlhf evaluate-reward`.

diagnoses.json is one object:

    fingerprint   the hash of all that decides the results
    content       all that decides them; `models` in it has the identity of each model by its name
    diagnoses     of each model by its name, and of the mean of several as `ensemble`, the fields of a Diagnosis
                  (rlhf/evaluation/reward/diagnosis.py): `metrics` {name: {mean, se, low, high, n}}, `counts` of pairs,
                  `reliability` [{low, high, confidence, accuracy, n}], `histogram` {edges, chosen, rejected} or null,
                  `temperature` or null, and the subsets of RewardBench that are `missing`

`se`, `low` and `high` are null where a metric has none. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.evaluation.reward import FILE
from rlhf.evaluation.reward.diagnosis import ENSEMBLE, Diagnosis
from rlhf.experiment.files import read_object
from rlhf.experiment.store import write_json


def write_diagnoses(
    directory: Path, fingerprint: str, content: Mapping[str, Any], diagnoses: Mapping[str, Diagnosis]
) -> None:
    """Keep diagnoses, by the names of their models, with all that decided them."""
    stored = {name: asdict(diagnosis) for name, diagnosis in diagnoses.items()}
    write_json(directory / FILE, {"fingerprint": fingerprint, "content": content, "diagnoses": stored})


@dataclass(frozen=True)
class Kept:
    """The diagnoses that a directory holds, by the names of their models, the fingerprint of all together, and the identity
    of each model."""

    fingerprint: str
    models: dict[str, str]
    diagnoses: dict[str, Diagnosis]

    def describe(self) -> dict[str, Any]:
        """Return the diagnoses as scripts read them."""
        identities = {**self.models, ENSEMBLE: self.fingerprint}
        models = [{"name": name, "fingerprint": identities[name], **asdict(own)} for name, own in self.diagnoses.items()]
        return {"models": models, "pairs": []}


def read_diagnoses(directory: Path) -> Kept | None:
    """Return the diagnoses that a directory holds; None where it holds none."""
    stored = read_object(directory / FILE)
    if stored is None:
        return None
    diagnoses = {name: Diagnosis.from_json(own) for name, own in stored["diagnoses"].items()}
    return Kept(stored["fingerprint"], stored["content"]["models"], diagnoses)
