"""Running frozen stages, or a script, on several ranks of this machine, one process group for all of them."""

import atexit
import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

from rlhf.config.schema import Config
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import read_spec, write_spec
from rlhf.launch.worker import free_port, rank_environment, run_rank
from support.command import ROOT, TESTS
from support.forks import ForkServer


@cache
def fork_server() -> ForkServer:
    """Start the server of this process's ranks, when it is first needed."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def run_specs(files: list[Path], world: int) -> None:
    """Run every spec, in order, on `world` ranks; fails with the output of the rank that failed."""
    run_script(__file__, world, *map(str, files))


def run_script(script: str, world: int, *arguments: str) -> list[str]:
    """Run a script on `world` ranks and return what each printed; fails with the output of the rank that failed."""
    port = free_port()
    environments = [
        {**os.environ, "OMP_NUM_THREADS": "1", **rank_environment(rank, rank, world, port)} for rank in range(world)
    ]
    calls = [[script, list(arguments), environment] for environment in environments]
    ended = fork_server().fork("support.ranks:be_script", calls)
    for code, output in zip(ended.codes, ended.outputs, strict=True):
        assert code == 0, output[-4000:]
    return ended.outputs


def run_new_processes(script: str, world: int, *arguments: str) -> list[str]:
    """Run a script as `run_script` does, on ranks that are forked from nothing: their memory is their own."""
    port = free_port()
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (TESTS, ROOT)))}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, *arguments], env=common | rank_environment(rank, rank, world, port), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=550)[0] for rank in ranks]
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output[-4000:]
    return outputs


def run_forked(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run `python -m rlhf` in a process that is forked with all imports done; its exit code, and what it printed."""
    ended = fork_server().fork("support.ranks:be_program", [[list(arguments), str(cwd), environment]])
    return ended.codes[0], ended.said


def be_program(arguments: list[str], directory: str, environment: dict[str, str]) -> int:
    """Run the program as its own process would."""
    from rlhf.cli import main

    os.environ.update(environment)
    os.chdir(directory)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["rlhf", *arguments]
    return main()


def be_script(script: str, arguments: list[str], environment: dict[str, str]) -> int:
    """Run a script as its own process would."""
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    return 0


def specs(config: Config) -> list[Path]:
    """The frozen stages of a configuration."""
    return [write_spec(node, config).file for node in build_graph(config)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run_rank(read_spec(Path(name)))
    os._exit(0)
