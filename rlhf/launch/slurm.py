"""Submitting a graph of stages to SLURM: a job per stage, after the jobs of the stages it needs.

Jobs are made by submitit; what they run is rlhf/launch/slurm_node.py, from a copy of the package. Everything is kept in
`<output_root>/slurm/`: specs, logs, the copies.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Launcher
from rlhf.config.secrets import MASK, mask, secret_keys
from rlhf.experiment.lock import LockLost, check, hold
from rlhf.experiment.spec import Spec, build_spec
from rlhf.experiment.store import write_atomic, write_json
from rlhf.experiment.sweep import Outcome, Task, blocked_by
from rlhf.launch.remaining import print_remaining
from rlhf.launch.slurm_node import Agent

FOLLOW_PERIOD_S = 5.0
# A job that has left the queue may show its result a little later, through a network file system.
GONE_S = 30.0


def submit(tasks: list[Task], console: Console) -> dict[str, Outcome]:
    """Submit the stages that no living job will do; with launcher.wait, follow them to their end. Raises ConfigError for
    what SLURM refuses."""
    config = tasks[0].config
    check_options(config.launcher)
    directory = Path(config.output_root).absolute() / "slurm"
    with hold(directory, config.launcher.lock_timeout_s, waiting=console.print):
        alive = list_active_jobs()
        jobs = {task.key: job for task in tasks if (job := task.node.directory.status().get("job")) in alive}
        for task in tasks:
            if task.key in jobs:
                console.print(f"{task.node.directory.path}: queued before, job {jobs[task.key]}", soft_wrap=True)
        # A job that ended since the plan was made is not in the queue, and has left its result.
        for group in group_tasks([task for task in tasks if task.key not in jobs and not task.node.directory.done]):
            check_turn(directory)
            for task, job in zip(group, submit_group(group, jobs, directory), strict=True):
                jobs[task.key] = job
                console.print(f"{task.node.directory.path}: job {job}", soft_wrap=True)
    if config.launcher.wait:
        return follow(tasks, jobs, directory, console)
    console.print("submitted; `python -m rlhf status` shows how far they are", highlight=False)
    submitted = {key: Outcome("queued", f"job {job}", job_log(directory, job)) for key, job in jobs.items()}
    return {task.key: submitted.get(task.key, Outcome("done")) for task in tasks}


def check_turn(directory: Path) -> None:
    """Make sure that no other process submits meanwhile. Raises ConfigError."""
    try:
        check(directory)
    except LockLost as lost:
        fix = "type the command again: what is queued is not submitted twice"
        raise ConfigError("launcher", "slurm", str(lost), fix) from lost


def group_tasks(tasks: list[Task]) -> list[list[Task]]:
    """Group the stages that one array can do, in the order of the graph: of one kind, with the same needs and resources."""
    found: dict[Any, list[Task]] = {}
    for task in tasks:
        alike = task.node.stage, sorted(task.parents), asdict(task.config.launcher), asdict(task.config.hardware)
        found.setdefault(repr(alike), []).append(task)
    return list(found.values())


def submit_group(group: list[Task], jobs: dict[str, str], directory: Path) -> list[str]:
    """Submit one job, or an array; returns the ids."""
    import submitit

    config = group[0].config
    specs = [build_spec(task.node, task.config, task.planned, task.swept, task.sweep) for task in group]
    agents = [Agent(write_job_spec(spec, directory)) for spec in specs]
    needs = [jobs[parent] for parent in group[0].parents if parent in jobs]
    executor = submitit.AutoExecutor(folder=directory / "logs", cluster="slurm")
    executor.update_parameters(
        **job_parameters(group[0], needs, package_copy(directory) if config.launcher.snapshot else package())
    )
    for task in group:
        task.node.directory.set_status(
            state="queued", stage=task.node.stage, fingerprint=task.node.fingerprint, job=None, reason=None, requeues=0
        )
    try:
        if len(group) == 1:
            submitted = [executor.submit(agents[0])]
        else:
            with executor.batch():
                submitted = [executor.submit(agent) for agent in agents]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        for task in group:
            task.node.directory.set_status(state="failed", reason="SLURM refused the job")
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        problem = f"SLURM refused the job: {said[-1] if said else error}"
        raise ConfigError(
            "launcher", "slurm", problem, "check launcher.partition, .account, .time_minutes and so on"
        ) from error
    for task, job in zip(group, submitted, strict=True):
        if task.node.directory.status().get("state") == "queued":
            task.node.directory.set_status(job=job.job_id)
    return [str(job.job_id) for job in submitted]


def job_parameters(task: Task, needs: list[str], code: Path) -> dict[str, Any]:
    """Return the options of sbatch in submitit's words: the resources of `hardware`, the rest of `launcher`."""
    hardware, launcher = task.config.hardware, task.config.launcher
    setup = setup_lines(launcher.setup, Path(task.config.output_root).absolute() / "slurm")
    cpus = launcher.cpus_per_gpu
    found: dict[str, Any] = {
        "name": f"rlhf-{task.node.stage}",
        "nodes": hardware.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": hardware.gpus_per_node if hardware.device == "cuda" else None,
        "cpus_per_task": None if cpus is None else cpus * hardware.gpus_per_node,
        "timeout_min": launcher.time_minutes,
        "stderr_to_stdout": True,
        "slurm_mem": None if launcher.memory_gib is None else f"{launcher.memory_gib}G",
        "slurm_partition": launcher.partition,
        "slurm_account": launcher.account,
        "slurm_qos": launcher.qos,
        "slurm_constraint": launcher.constraint,
        "slurm_array_parallelism": launcher.array_parallelism,
        "slurm_signal_delay_s": launcher.signal_delay_s,
        # Safe path: `python -m` would look for the package in the directory of submission first.
        "slurm_setup": [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}:$PYTHONPATH", *setup],
        "slurm_dependency": ",".join(f"afterok:{job}" for job in needs) or None,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True, **(launcher.additional or {})},
    }
    return {key: value for key, value in found.items() if value is not None}


def write_job_spec(spec: Spec, directory: Path) -> Path:
    """Write the frozen stage that a job reads; returns the file."""
    file = directory / "specs" / f"{Path(spec.directory).name}.json"
    write_json(file, asdict(spec), private=True)
    return file


def setup_lines(lines: list[str], directory: Path) -> list[str]:
    """Return the shell lines for a job's script. SLURM keeps the script where others may read it, so a line with a secret
    stands in a file that its owner alone can read, and the script reads that."""
    return [line if mask(line) == line else f". {shlex.quote(str(write_setup(line, directory)))}" for line in lines]


def write_setup(line: str, directory: Path) -> Path:
    """Write a shell line into a private file of its own."""
    file = directory / "setup" / f"{hashlib.sha256(line.encode()).hexdigest()[:12]}.sh"
    write_atomic(file, line + "\n", private=True)
    return file


def check_options(launcher: Launcher) -> None:
    """Refuse options of sbatch that hold a secret: they stand in the job's script. Raises ConfigError."""
    for key in secret_keys(launcher.additional or {}):
        problem = "it looks like a secret, and would stand in the job's script, which others may read"
        raise ConfigError(f"launcher.additional.{key}", MASK, problem, "export it in launcher.setup, which is kept private")


def package() -> Path:
    """Return the directory that holds the package."""
    return Path(__file__).resolve().parents[2]


def package_copy(directory: Path) -> Path:
    """Copy the package as it is now, once for each state of it; returns the directory with the copy."""
    from rlhf.experiment.fingerprint import code_hash

    copy = directory / "code" / code_hash()[:12]
    if not copy.exists():
        unfinished = copy.with_name(f".{uuid.uuid4().hex}")
        shutil.copytree(package() / "rlhf", unfinished / "rlhf", ignore=shutil.ignore_patterns("__pycache__"))
        os.replace(unfinished, copy)
    return copy


def list_active_jobs() -> set[str]:
    """Return the user's jobs that wait or run, elements of arrays by themselves. Raises ConfigError if SLURM does not
    answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        problem = f"SLURM does not answer: {said[-1] if said else error}"
        raise ConfigError("launcher", "slurm", problem, "see `squeue`") from error
    return set(done.stdout.split())


def job_log(directory: Path, job: str) -> Path:
    """Return the log of a job's first node."""
    return directory / "logs" / f"{job}_0_log.out"


def follow(tasks: list[Task], jobs: dict[str, str], directory: Path, console: Console) -> dict[str, Outcome]:
    """Wait until every stage is done or no job is left that would do it."""
    outcomes: dict[str, Outcome] = {}
    known, last_seen = {task.key: task for task in tasks}, dict.fromkeys(jobs, time.monotonic())
    while len(outcomes) < len(tasks):
        alive = list_active_jobs()
        for task in tasks:
            if task.key in outcomes:
                continue
            if task.node.directory.done:
                outcomes[task.key] = Outcome("done")
            elif jobs[task.key] in alive:
                last_seen[task.key] = time.monotonic()
                continue
            else:
                ended = read_outcome(task, jobs[task.key], outcomes, known, directory)
                if ended is None and time.monotonic() - last_seen[task.key] < GONE_S:
                    continue
                outcomes[task.key] = ended or Outcome(
                    "failed", f"job {jobs[task.key]} has gone", job_log(directory, jobs[task.key])
                )
            outcome = outcomes[task.key]
            console.print(f"{task.node.directory.path}: {outcome.state} {outcome.reason or ''}", soft_wrap=True)
            print_remaining(tasks, outcomes, task.config.launcher.array_parallelism, console)
        time.sleep(FOLLOW_PERIOD_S if len(outcomes) < len(tasks) else 0.0)
    return outcomes


def read_outcome(
    task: Task, job: str, outcomes: dict[str, Outcome], known: dict[str, Task], directory: Path
) -> Outcome | None:
    """Find out how a stage ended whose job has left the queue without a result; None if its directory does not tell yet."""
    status = task.node.directory.status()
    if blocked := blocked_by(task, outcomes, known):
        return blocked
    if status.get("state") in ("failed", "stopped", "pruned"):
        return Outcome(str(status["state"]), str(status.get("reason")), job_log(directory, job))
    return None
