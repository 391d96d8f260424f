"""What a result was made with: versions, code, machine."""

import hashlib
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf.config.schema import Config
from rlhf.runtime.device import gpu_names

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "peft",
    "hydra-core",
    "omegaconf",
    "datasets",
    "numpy",
    "wandb",
    "rlhf",
)


def environment(config: Config) -> dict[str, Any]:
    """Return the content of environment.json. No environment variables: they may hold secrets."""
    return {
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "git": git_state(),
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "gpus": gpu_names(),
        "hardware": asdict(config.hardware),
    }


def processor_name() -> str:
    """Return the processor's name where Linux tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed_version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, str | None]:
    """Return the commit of the code, and a hash of what differs from it (None: nothing does)."""
    commit, difference = git("rev-parse", "HEAD"), git("diff", "HEAD")
    return {"commit": commit, "diff": hashlib.sha256(difference.encode()).hexdigest() if difference else None}


def git(*arguments: str) -> str | None:
    """Run git in the package's directory; returns its output, None outside a repository or without git."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
