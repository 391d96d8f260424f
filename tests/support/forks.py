"""Processes that start with all imports done: a server imports what training needs once, and forks them.

`ForkServer` talks to the server; started as a script, this is the server.
"""

import gc
import json
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
from typing import Any

from support.command import ROOT, TESTS


@dataclass(frozen=True)
class Kill:
    """A signal that processes get `delay` seconds after their start: all of them, or the one of this number."""

    delay: float
    signal: int = signal.SIGKILL
    number: int | None = None


@dataclass(frozen=True)
class Ended:
    """What became of a run: the exit code of each process (-9: killed), and what each printed."""

    codes: list[int]
    outputs: list[str] = field(repr=False)

    @property
    def said(self) -> str:
        """By the first process."""
        return self.outputs[0]


class ForkServer:
    """The server, from outside. Sets and dictionaries of servers with different hash seeds differ in their order."""

    def __init__(self, hash_seed: int | str = "random") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (TESTS, ROOT)))}
        environment["PYTHONHASHSEED"] = str(hash_seed)
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fork(self, function: str, calls: list[list[Any]], kill: Kill | None = None) -> Ended:
        """Call a function (`module:name`) in a process for each list of arguments, of which JSON must be made, and wait for
        all processes. What the function returns is the exit code. When one fails, the others are ended."""
        job = {"function": function, "calls": calls, "kill": None if kill is None else asdict(kill)}
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
        kill = None if job["kill"] is None else Kill(**job["kill"])
        answers.write(json.dumps(asdict(attempt(job["function"], job["calls"], kill))) + "\n")
        answers.flush()


def warm() -> None:
    """Do here what each process would do once, when it is first needed."""
    import deepspeed
    import deepspeed.module_inject.auto_ep_layer
    import torch._inductor.compile_fx  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from rlhf.config.points import compose_config

    get_checkpoint_conversion_mapping("opt")
    assert deepspeed.ops.__compatible_ops__
    compose_config()


def attempt(function: str, calls: list[list[Any]], kill: Kill | None) -> Ended:
    """Run all processes; when one fails, the others are ended as well."""
    logs = [tempfile.TemporaryFile("w+") for _ in calls]  # noqa: SIM115
    started = time.monotonic()
    children = [fork(function, arguments, log) for arguments, log in zip(calls, logs, strict=True)]
    codes: dict[int, int] = {}
    is_due, deadline = kill is not None, started + 550
    while len(codes) < len(calls):
        for number, child in enumerate(children):
            if number not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[number] = os.waitstatus_to_exitcode(found[1])
                if codes[number] not in (0, 85):  # 85: asked to stop, and saved
                    deadline = min(deadline, time.monotonic() + 0.5)
        running = [child for number, child in enumerate(children) if number not in codes]
        if kill is not None and is_due and time.monotonic() > started + kill.delay:
            is_due = False
            signal_all([c for c in running if kill.number is None or c == children[kill.number]], kill.signal)
        if time.monotonic() > deadline:
            signal_all(running, signal.SIGKILL)
            deadline += 60
        time.sleep(0.005)
    outputs = []
    for log in logs:
        log.seek(0)
        outputs.append(log.read())
        log.close()
    return Ended([codes[number] for number in range(len(calls))], outputs)


def signal_all(children: list[int], number: int) -> None:
    """Send a signal to some processes."""
    for child in children:
        os.kill(child, number)


def fork(function: str, arguments: list[Any], log: Any) -> int:
    """Start a process; returns its id. Nothing random is alike in two of them, but for what training seeds itself."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        import numpy as np
        import torch

        random.seed()
        np.random.seed()
        torch.seed()
        code = pkgutil.resolve_name(function)(*arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
