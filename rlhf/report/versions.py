"""What the stages were made with, and where they do not agree."""

from dataclasses import dataclass
from typing import Any

from rlhf.experiment.files import as_mapping
from rlhf.report.collect import Collection
from rlhf.report.groups import to_yaml_text
from rlhf.report.stage import Stage
from rlhf.report.throughput import device


@dataclass(frozen=True)
class Version:
    """A thing with its value, or its values with the stages that have each."""

    name: str
    values: list[tuple[str, list[str]]]


def versions(collection: Collection) -> list[Version]:
    """List Python, packages, code, host and hardware of all stages that say what they were made with."""
    facts = {stage.name: describe_version(stage) for stage in collection.stages if stage.environment}
    names = dict.fromkeys(name for own in facts.values() for name in own)
    found = []
    for name in names:
        values: dict[str, list[str]] = {}
        for stage, own in facts.items():
            values.setdefault(own.get(name, "not installed"), []).append(stage)
        found.append(Version(name, list(values.items())))
    return found


def describe_version(stage: Stage) -> dict[str, str]:
    """Return what a stage's environment.json tells: code, hardware, machine, Python and packages, by name."""
    environment = stage.environment
    gpus = environment.get("gpus")
    packages = {str(name): version for name, version in as_mapping(environment.get("packages")).items() if version}
    facts: dict[str, Any] = {
        "git commit": commit(as_mapping(environment.get("git"))),
        "hardware": device(stage),
        "GPUs": ", ".join(dict.fromkeys(map(str, gpus))) or None if isinstance(gpus, list) else None,
        "host": environment.get("host"),
        "platform": environment.get("platform"),
        "processor": environment.get("processor"),
        "python": environment.get("python"),
        **packages,
    }
    return {name: to_yaml_text(value) for name, value in facts.items() if value is not None}


def commit(git: dict[str, Any]) -> str | None:
    """Write the code's commit, and a hash of the changes if there were any; None without a commit."""
    if not git.get("commit"):
        return None
    return to_yaml_text(git["commit"]) + (f" with changes ({to_yaml_text(git['diff'])[:12]})" if git.get("diff") else "")
