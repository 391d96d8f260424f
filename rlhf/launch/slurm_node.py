"""What a SLURM job runs on each of its nodes: it starts this node's ranks, watches them, and has the job queued again when
its time is over."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from rich.console import Console

from rlhf.config.directories import is_finished_stage
from rlhf.config.terminal import Terminal
from rlhf.experiment.lock import Held, LockLost, adopt_lock, hold
from rlhf.experiment.spec import Spec, job_id, read_spec, stage_directory, start_attempt
from rlhf.experiment.stopping import Pruned, Stopped, listening, received_signals
from rlhf.launch.scheduler import local_threads
from rlhf.launch.workers import Devices, Rendezvous, StageFailed, run_workers, spawn


class Agent:
    """The callable that submitit pickles: it holds nothing but the name of the spec's file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __call__(self) -> None:
        """Run this node's part of the job; SLURM shows a job that did not end well as failed."""
        code = run_node(Path(self.file))
        if code:
            raise SystemExit(code)


def run_node(file: Path) -> int:
    """Run this node's ranks of a stage; returns the exit code of the job's task."""
    console = Terminal(width=200)
    with listening(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        spec = read_spec(file)
        directory, first = stage_directory(spec), node_number() == 0
        try:
            if needed := missing_input(spec):
                raise RuntimeError(f"{needed}, which it needs, is not done")
            if not first:
                adopt_lock(directory.path, Held(directory.path / "lock", lock_token()))
                run_ranks(spec, file, console)
                return 0
            with hold(directory.path, spec.config.launcher.lock_timeout_s, console.print, lock_token()):
                if not directory.done:
                    start_attempt(spec)
                    run_ranks(spec, file, console)
            return 0
        except Pruned as pruned:
            console.print(f"pruned: {pruned}", soft_wrap=True)
            return int(first)  # stages that need this one must not start; other nodes leave as after `Stopped`
        except Stopped as stopped:
            console.print(f"stopped: {stopped}", soft_wrap=True)
            return requeue_or_leave(spec, str(stopped), first)
        except LockLost as lost:
            console.print(f"stopped: {lost}", soft_wrap=True)
            return 1
        except Exception as error:
            reason = str(error) if isinstance(error, StageFailed | RuntimeError) else f"{type(error).__name__}: {error}"
            console.print(f"failed: {reason}", soft_wrap=True)
            with contextlib.suppress(LockLost):  # the first node has left it, and has said why
                directory.set_status(state="failed", reason=reason)
            return 1


def run_ranks(spec: Spec, file: Path, console: Console) -> None:
    """Start and watch this node's workers. On nodes but the first they may be redundant: the first may find that another
    job has finished the stage."""
    directory = stage_directory(spec)
    meeting = Rendezvous(node_number(), master(), port(), file)
    devices = Devices(None, local_threads(spec.config))
    run_workers(spec, console, devices, spawn, meeting, lambda: directory.done)


def requeue_or_leave(spec: Spec, reason: str, first: bool) -> int:
    """Queue the job again after saving if its time is over, or if SLURM takes its nodes for another job; not if the user
    cancelled it. Returns the exit code. Nodes but the first leave with 0: another code would have srun end the first one
    too."""
    if not first:
        return 0
    directory, limit = stage_directory(spec), spec.config.launcher.max_requeues
    requeues = directory.counted("requeues")
    if signal.SIGUSR2 in received_signals and requeues < limit:
        directory.set_status(state="queued", reason=f"{reason}; its time was over", requeues=requeues + 1)
    elif signal.SIGUSR2 in received_signals:
        directory.set_status(state="stopped", reason=f"{reason}; launcher.max_requeues={limit} is reached")
        return 1
    elif is_preempted():
        directory.set_status(state="queued", reason=f"{reason}; another job took its place")
    else:
        directory.set_status(state="stopped", reason=reason)
        return 1
    subprocess.run(["scontrol", "requeue", job_id() or ""], check=True, timeout=120)
    return 0


def is_preempted() -> bool:
    """Whether SLURM has told this job to give way, and still lets it run for its grace time. A job that is cancelled or
    queued again by others does not run any more; then nothing is to be done."""
    command = ["scontrol", "-o", "show", "job", job_id() or ""]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    return "JobState=RUNNING" in told and re.search(r"\bPreemptTime=(?!None)", told) is not None


def missing_input(spec: Spec) -> str | None:
    """Return a stage that this one needs and that is not done. SLURM takes a job that it has forgotten for one that ended
    well."""
    needed = [Path(path).parent for path in spec.inputs.values()] if spec.parents else []
    return next((path.name for path in needed if not is_finished_stage(path) and path.parent.name == "stages"), None)


def lock_token() -> str:
    """Return the name of this job in its stage's lock: the first node takes the lock, and all nodes check that the job
    still has it."""
    return f"slurm {os.environ['SLURM_JOB_ID']} {os.environ.get('SLURM_RESTART_COUNT', '0')}"


def node_number() -> int:
    """Return this node's number in the job."""
    return int(os.environ.get("SLURM_NODEID", "0"))


def master() -> str:
    """Return the job's first node."""
    import submitit

    return str(submitit.JobEnvironment().hostnames[0])


def port() -> int:
    """Return a TCP port at which this job's ranks meet; another one each time the job is queued again."""
    job, restarts = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return 20000 + (7 * job + restarts) % 20000
