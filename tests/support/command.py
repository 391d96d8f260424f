"""Running the program as its users do: `python -m rlhf …` in a process of its own, or in this one."""

import io
import os
import resource
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
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


def run_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as `run_rlhf` does, but in this process, which has imported what training needs."""
    from hydra.core.global_hydra import GlobalHydra

    from rlhf.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    GlobalHydra.instance().clear()
    sys.argv = ["rlhf", *arguments]
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            code = main()
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def children_seconds() -> float:
    """CPU seconds of the processes that this one has started and waited for: unlike wall time, other work on the machine
    hardly changes them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
