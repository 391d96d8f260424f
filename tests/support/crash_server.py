"""A server that runs stages in processes which can be killed at a chosen instant.

It imports what training needs once, and forks a process per rank, each of which does what `python -m rlhf.launch.worker`
does, so that a run costs no imports. `CrashServer` talks to it; started as a script, this is the server.
"""

import errno
import gc
import importlib
import json
import math
import os
import pkgutil
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.command import ROOT, TESTS


@dataclass(frozen=True)
class FaultPoint:
    """How a rank is hit: at the `nth` call of `at` (module:attribute) whose arguments show `match`, before or after it, or
    where what it returned is called; or `delay` seconds after its start. `rank` None: all of them, if there is a delay.
    `signal` 0: instead, the function says that the disk is full; and `when` "nan": it lives, but for that and all further
    calls the function's tensor is NaN."""

    at: str = ""
    when: str = "before"
    nth: int = 1
    match: str = ""
    delay: float = 0.0
    rank: int | None = 0
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """What became of a run: the exit code of each rank (-9: killed), and what each printed."""

    codes: list[int]
    outputs: list[str] = field(repr=False)

    @property
    def said(self) -> str:
        """By the first rank."""
        return self.outputs[0]


class CrashServer:
    """The server, from outside. Sets and dictionaries of two servers differ in their order, as those of two workers do."""

    def __init__(self, hash_seed: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (TESTS, ROOT)))}
        environment["PYTHONHASHSEED"] = str(hash_seed)
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, spec: Path, world: int = 1, fault: FaultPoint | None = None) -> Ended:
        """Run a frozen stage to its end, or to its fault."""
        job = {"spec": str(spec), "world": world, "fault": None if fault is None else asdict(fault)}
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return Ended(**json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(20)


def serve() -> None:
    """Run the jobs that come in, one after another."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.opt.modeling_opt  # noqa: F401

    import rlhf.stages.run  # noqa: F401
    from rlhf.catalog.stage import stage_kinds

    for kind in stage_kinds().values():
        pkgutil.resolve_name(kind.run)

    warm()
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # the children need not look at what they share
    for line in sys.stdin:
        job = json.loads(line)
        fault = None if job["fault"] is None else FaultPoint(**job["fault"])
        answers.write(json.dumps(asdict(attempt(job["spec"], job["world"], fault))) + "\n")
        answers.flush()


def warm() -> None:
    """Do here what each process would do once, when it is first needed."""
    import deepspeed
    import deepspeed.module_inject.auto_ep_layer
    import torch._inductor.compile_fx  # noqa: F401
    from omegaconf import OmegaConf
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from rlhf.config.schema import Config

    get_checkpoint_conversion_mapping("opt")
    assert deepspeed.ops.__compatible_ops__
    OmegaConf.merge(OmegaConf.structured(Config), {})


def attempt(spec: str, world: int, fault: FaultPoint | None) -> Ended:
    """Run all ranks; when one fails, the others are ended as well."""
    from rlhf.launch.worker import free_port

    port = free_port()
    logs = [tempfile.TemporaryFile("w+") for _ in range(world)]  # noqa: SIM115
    started = time.monotonic()
    children = [fork(spec, rank, world, port, fault, log) for rank, log in enumerate(logs)]
    codes: dict[int, int] = {}
    hit, deadline = fault is None or not fault.delay, started + 300
    while len(codes) < world:
        for rank, child in enumerate(children):
            if rank not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
                if codes[rank] not in (0, 85):
                    deadline = min(deadline, time.monotonic() + 0.5)
        if not hit and time.monotonic() > started + fault.delay:
            hit = True
            kill([c for rank, c in enumerate(children) if rank not in codes and fault.rank in (None, rank)], fault.signal)
        if time.monotonic() > deadline:
            kill([child for rank, child in enumerate(children) if rank not in codes], signal.SIGKILL)
            deadline += 60
        time.sleep(0.005)
    outputs = []
    for log in logs:
        log.seek(0)
        outputs.append(log.read())
        log.close()
    return Ended([codes[rank] for rank in range(world)], outputs)


def kill(children: list[int], number: int) -> None:
    """Send a signal to some processes."""
    for child in children:
        os.kill(child, number)


def fork(spec: str, rank: int, world: int, port: int, fault: FaultPoint | None, log) -> int:
    """Start a rank; returns its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        code = be_rank(spec, rank, world, port, fault)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def be_rank(spec: str, rank: int, world: int, port: int, fault: FaultPoint | None) -> int:
    """What a worker does; nothing random is alike in two of them, but for what training seeds itself."""
    import numpy as np
    import torch

    from rlhf.launch import worker

    random.seed()
    np.random.seed()
    torch.seed()
    os.environ.update(worker.rank_environment(rank, rank, world, port))
    if fault is not None and fault.at and fault.rank == rank:
        arm(fault)
    sys.argv = ["worker", spec]
    return worker.main()


def arm(fault: FaultPoint) -> None:
    """Wrap a function so that the process dies there."""
    module, path = fault.at.split(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def strike() -> None:
        if not fault.signal:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), fault.signal)

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += not fault.match or fault.match in repr((args, kwargs))
        if fault.when == "nan":
            return original(*args, **kwargs) * (math.nan if calls >= fault.nth else 1.0)
        due = calls == fault.nth
        if due:
            calls += 1
        if due and fault.when == "before":
            strike()
        result = original(*args, **kwargs)
        if due and fault.when == "after":
            strike()
        return (lambda *_: strike()) if due and fault.when == "returned" else result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    serve()
