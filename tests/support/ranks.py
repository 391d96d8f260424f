"""Running frozen stages, or a script, on several ranks of this machine, one process group for all of them (a process group
and the imports cost seconds). Started as a script it is one rank; `run_specs` starts all of them."""

import os
import subprocess
import sys
from pathlib import Path

from rlhf.config.schema import Config
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import read_spec, write_spec
from rlhf.launch.worker import free_port, rank_environment, run_rank
from support.command import ROOT, TESTS


def run_specs(files: list[Path], world: int) -> None:
    """Run every spec, in order, on `world` ranks; fails with the output of the rank that failed."""
    run_script(__file__, world, *map(str, files))


def run_script(script: str, world: int, *arguments: str) -> list[str]:
    """Run a script on `world` ranks and return what each printed; fails with the output of the rank that failed."""
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env={
                **os.environ,
                **rank_environment(rank, rank, world, port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(map(str, (TESTS, ROOT))),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [worker.communicate(timeout=550)[0] for worker in workers]
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output[-4000:]
    return outputs


def specs(config: Config) -> list[Path]:
    """The frozen stages of a configuration."""
    return [write_spec(node, config).file for node in build_graph(config)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run_rank(read_spec(Path(name)))
    os._exit(0)
