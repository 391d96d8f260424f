"""Running the program as its users do: `python -m rlhf …` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def clean_environment(home: Path, package: Path = ROOT) -> dict[str, str]:
    """The environment of a process that imports rlhf from `package`, without W&B's settings and the user's home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return environment | {"HOME": str(home), "PYTHONPATH": str(package)}


def run_rlhf(*arguments: str, cwd: Path, package: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m rlhf` in a directory and wait for its end; the result holds its exit code and what it printed."""
    command = [sys.executable, "-m", "rlhf", *arguments]
    environment = clean_environment(cwd, package)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
