"""One rank of a stage. `python -m rlhf.launch.worker <spec.json>`, or called in the launching process."""

import os
import socket
import sys
import traceback
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.experiment.spec import Spec, thaw


def run_inline(spec: Spec) -> None:
    """Run a stage in this process, as its only rank."""
    os.environ.update(rank_environment(0, 0, 1, free_port()))
    run_rank(spec)


def rank_environment(rank: int, local_rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that torch.distributed and DeepSpeed read."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_rank(spec: Spec) -> None:
    """Import what trains, and train."""
    from rlhf.engine.distributed import start

    start(spec.config)  # before anything imports deepspeed: it looks for its device then
    from rlhf.stages import run_stage

    run_stage(spec)


def main() -> int:
    """A worker process: exit code 0 when done, 2 for bad input, 1 for everything else."""
    try:
        run_rank(thaw(Path(sys.argv[1])))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a failed rank must not wait in an exit handler for ranks that wait for it
