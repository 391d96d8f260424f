"""The private name of W&B that this package uses, tried with wandb 0.31.0."""

from typing import Any


def use_artifact(run: Any, artifact: Any, version: str) -> None:
    """Declare an artifact as an input of a run, under the alias of its version. One that the server has is referred to,
    since describing it again may make it the `latest`, which the newest one is that was made. Otherwise, and offline, it
    is described with the run, which `run.use_artifact` refuses offline although what is written offline can hold it."""
    if run.offline or not refer_to(run, f"{artifact.name}:{version}", artifact.type):
        run._log_artifact(artifact, aliases=[version], is_user_created=True, use_after_commit=True)


def refer_to(run: Any, name: str, kind: str) -> bool:
    """Declare an artifact of the server as an input of a run; returns whether the server has it."""
    from wandb.errors import CommError

    try:
        run.use_artifact(name, type=kind)
    except (ValueError, CommError):
        return False
    return True
