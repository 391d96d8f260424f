"""A stage frozen for its workers: what was launched is what runs, whatever is edited meanwhile."""

import os
import socket
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config
from rlhf.config.secrets import to_yaml
from rlhf.config.sections import config_type
from rlhf.experiment.checkpoints import check_layout, remove_all
from rlhf.experiment.files import parse_json
from rlhf.experiment.fingerprint import code_hash
from rlhf.experiment.graph import Node
from rlhf.experiment.resolve import resolve_for_stage
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.store import write_atomic, write_json
from rlhf.planner.remaining import Planned


@dataclass(frozen=True)
class Spec:
    """All that a worker reads: the stage, its identity, its inputs, the resolved configuration, a hash of the code, the
    fingerprints of the stages that make its inputs, the hashes of the files of data that it reads, what was planned of it,
    and, for trackers, the overrides by which its sweep tells it apart and the sweep's name. The spec's own file holds the
    configuration's secrets, for its owner alone."""

    stage: str
    fingerprint: str
    directory: str
    inputs: dict[str, str]
    config: Config
    code: str
    parents: list[str]
    files: dict[str, str] = field(default_factory=dict)
    planned: dict[str, Any] = field(default_factory=dict)
    swept: str = ""
    sweep: str = ""

    @property
    def title(self) -> str:
        """What trackers call the stage: its kind with what its sweep tells it apart by, or the first digits of its
        fingerprint."""
        return f"{self.stage} {self.swept or self.fingerprint[:8]}"

    @property
    def file(self) -> Path:
        """The file that the spec is stored in."""
        return stage_directory(self).spec_file


def build_spec(node: Node, config: Config, planned: Planned | None = None, swept: str = "", sweep: str = "") -> Spec:
    """Return a stage as it is to run, with the code that is here now."""
    resolved = resolve_for_stage(config, node.stage, node.inputs)
    return Spec(
        node.stage, node.fingerprint, str(node.directory.path), node.inputs, resolved, code_hash(), list(node.parents),
        node.files, {} if planned is None else asdict(planned), swept, sweep,
    )  # fmt: skip


def start_attempt(spec: Spec) -> None:
    """Begin an attempt at a stage.

    It writes spec.json and config.yaml, plan.json if the stage was planned, and display.json where others cannot read its
    kind. It removes leftovers of an unfinished attempt, except what that can be resumed from. Raises ConfigError where the
    checkpoint was saved with another layout of devices.
    """
    directory = stage_directory(spec)
    if spec.config.checkpoint.resume:
        check_layout(directory.path, spec.config, spec.stage)
    else:
        remove_all(directory.path)
    directory.clear()
    write_json(spec.file, asdict(spec), private=True)
    write_atomic(directory.path / "config.yaml", to_yaml(asdict(spec.config)))
    directory.write_planned(spec.planned)
    directory.write_display(spec.stage)
    attempts = directory.counted("attempts") + 1
    directory.set_status(
        state="starting", stage=spec.stage, fingerprint=spec.fingerprint, attempts=attempts, reason=None,
        host=socket.gethostname(), pid=os.getpid(), job=job_id(),
    )  # fmt: skip


def job_id() -> str | None:
    """Return the SLURM job that this process belongs to, an element of an array as `<array>_<element>`."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def write_spec(node: Node, config: Config) -> Spec:
    """Begin an attempt at a stage as it is to run now."""
    spec = build_spec(node, config)
    start_attempt(spec)
    return spec


def read_spec(file: Path) -> Spec:
    """Read a spec. Raises ConfigError for one that was launched by other code, unless launcher.allow_code_change, and for
    one whose keys are those of another release."""
    values = parse_json(file.read_text())
    if values["code"] != code_hash() and not values["config"]["launcher"]["allow_code_change"]:
        raise refuse_code("the package has changed since this stage was launched")
    return load_spec(values)


def check_imported_code(spec: Spec) -> None:
    """Check that a process which runs several stages still runs the code that it began with: what it has imported stays,
    and what it imports later would be newer. Raises ConfigError, unless launcher.allow_code_change."""
    if spec.code != first_code_hash() and not spec.config.launcher.allow_code_change:
        raise refuse_code("the package has changed since this process began its first stage")


@cache
def first_code_hash() -> str:
    """Return the hash of the package's source when this was first asked for."""
    return code_hash()


def refuse_code(problem: str) -> ConfigError:
    """Return the error of code that is not what it was."""
    return ConfigError("launcher.allow_code_change", False, problem, "launch it again or set it true")


def load_spec(values: dict[str, Any]) -> Spec:
    """Make a spec of what its file holds. Raises ConfigError for one whose keys are those of another release."""
    config = values.pop("config")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(config_type(config["stages"], config.get("rewards"))), config)
        return Spec(**values, config=cast(Config, OmegaConf.to_object(merged)))
    except OmegaConfBaseException as error:
        problem = f"another release launched this stage: {first_line(error)}"
        raise ConfigError("spec", values["directory"], problem, "launch it again with this release") from error


def stage_directory(spec: Spec) -> StageDirectory:
    """Return the directory that the spec's stage writes."""
    return StageDirectory(Path(spec.directory))
