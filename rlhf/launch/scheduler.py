"""Stages on this machine: one after another, or several at a time on devices of their own."""

import os
import queue
import signal
import sys
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlhf.catalog.stage import kind_of
from rlhf.config.derive import ranks
from rlhf.config.disk import disk_problem
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config
from rlhf.experiment.lock import LockLost, hold
from rlhf.experiment.spec import build_spec, start_attempt
from rlhf.experiment.stopping import Stopped, abort_requested, listening, stop_requested
from rlhf.experiment.store import write_atomic
from rlhf.experiment.sweep import Outcome, Task, blocked_by
from rlhf.launch.remaining import print_failure, print_remaining
from rlhf.launch.warm import fork
from rlhf.launch.workers import Devices, StageFailed, log_file, run_workers, spawn

NOT_STARTED = Outcome("stopped", "not started")


def run_here(tasks: list[Task], console: Console) -> dict[str, Outcome]:
    """Run what is not done, each stage after those it needs; one that fails stops only what needs it. SIGINT, SIGTERM
    and SIGHUP save and stop what runs, and nothing else is started."""
    parallel = max(1, min(tasks[0].config.launcher.parallel, len(tasks)))
    with listening(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if parallel > 1:
            return StageScheduler(tasks, console, parallel).run()
        outcomes: dict[str, Outcome] = {}
        by_key = {task.key: task for task in tasks}
        for task in tasks:
            blocked = blocked_by(task, outcomes, by_key)
            if stop_requested.is_set():
                outcomes[task.key] = NOT_STARTED
            elif blocked:
                outcomes[task.key] = blocked
            else:
                outcomes[task.key] = run_stage_here(task, console, None)
                print_failure(task, outcomes[task.key], console)
                print_remaining(tasks, outcomes, 1, console)
        return outcomes


class StageScheduler:
    """Runs up to `parallel` stages at a time, each on a share of this machine's devices."""

    def __init__(self, tasks: list[Task], console: Console, parallel: int) -> None:
        self.tasks, self.console, self.parallel = tasks, console, parallel
        self.by_key = {task.key: task for task in tasks}
        self.outcomes: dict[str, Outcome] = {}
        self.waiting = list(tasks)
        self.running: dict[Future[Outcome], Task] = {}
        self.shares: queue.Queue[Devices] = queue.Queue()
        for number in range(parallel):
            self.shares.put(share_of_devices(max(tasks, key=lambda task: ranks(task.config)), number, parallel))

    def run(self) -> dict[str, Outcome]:
        """Run everything; returns when the last stage has ended."""
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                while self.waiting or self.running:
                    self.start(pool, stop_requested.is_set())
                    if not self.running:
                        continue
                    ended, _ = wait(self.running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in ended:
                        task = self.running.pop(future)
                        self.outcomes[task.key] = future.result()
                        print_failure(task, self.outcomes[task.key], self.console)
                    if ended:
                        print_remaining(self.tasks, self.outcomes, self.parallel, self.console)
            except BaseException:
                abort_requested.set()
                raise
        return self.outcomes

    def start(self, pool: ThreadPoolExecutor, stopping: bool) -> None:
        """Start the stages that can run now, and skip those that cannot any more."""
        for task in list(self.waiting):
            blocked = blocked_by(task, self.outcomes, self.by_key)
            if stopping or blocked:
                self.outcomes[task.key] = NOT_STARTED if stopping or blocked is None else blocked
                self.waiting.remove(task)
            elif len(self.running) < self.parallel and all(p in self.outcomes for p in task.parents if p in self.by_key):
                self.waiting.remove(task)
                self.running[pool.submit(self.run_one, task)] = task

    def run_one(self, task: Task) -> Outcome:
        """Run a stage on the devices that are free."""
        devices = self.shares.get()
        try:
            return run_stage_here(task, self.console, devices)
        finally:
            self.shares.put(devices)


def share_of_devices(task: Task, number: int, parallel: int) -> Devices:
    """Return the GPUs, or the cores and threads, of the n-th stage of `parallel` that run at once."""
    count, threads = task.config.hardware.gpus_per_node, local_threads(task.config, parallel)
    if task.config.hardware.device != "cuda":
        return Devices(None, threads, share_of_cores(number, parallel))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(gpu) for gpu in range(parallel * count)]
    return Devices(names[number * count : (number + 1) * count], threads)


def share_of_cores(number: int, parallel: int) -> list[int] | None:
    """Return the n-th of `parallel` disjoint groups of this process's cores, of one size; None where they cannot be had."""
    cores = list_cores()
    each = len(cores) // parallel
    return cores[number * each : (number + 1) * each] if parallel > 1 and cores and each else None


def list_cores() -> list[int]:
    """Return the numbers of the processor cores that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def local_threads(config: Config, parallel: int = 1) -> int:
    """Return the threads of each rank, if `parallel` stages share the processors that this process may use."""
    cores = len(list_cores()) or os.cpu_count() or 1
    return config.launcher.threads or max(1, cores // (parallel * config.hardware.gpus_per_node))


def run_stage_here(task: Task, console: Console, devices: Devices | None) -> Outcome:
    """Run a stage, or wait for the process that is running it."""
    node, config = task.node, task.config
    if node.directory.done:
        console.print(style_done(f"{node.stage}: done before, {node.directory.path}"), soft_wrap=True)
        return Outcome("reused")
    try:
        with hold(node.directory.path, config.launcher.lock_timeout_s, waiting=console.print):
            if node.directory.done:
                console.print(style_done(f"{node.stage}: done by another process, {node.directory.path}"), soft_wrap=True)
                return Outcome("reused")
            return run_locked(task, console, devices)
    except Stopped as stopped:
        return Outcome(stopped.state, str(stopped))
    except LockLost as lost:
        console.print(Text.assemble(("stopped", "yellow"), f" {node.stage}: {lost}"), soft_wrap=True)
        return Outcome("stopped", str(lost))
    except OSError as error:
        return Outcome("failed", disk_problem(error, node.directory.path))


def run_locked(task: Task, console: Console, devices: Devices | None) -> Outcome:
    """Run a stage whose lock this process holds. Raises LockLost if it does not any more."""
    node, config = task.node, task.config
    spec = build_spec(node, config, task.planned, task.swept, task.sweep)
    try:
        start_attempt(spec)
        whose = f", {task.label}" if task.label else ""
        console.print(Text.assemble((node.stage, "bold"), f"{whose}: {node.directory.path}"), soft_wrap=True)
        workers = devices is not None or config.launcher.kind == "local" or ranks(config) > 1
        if workers:
            start = fork if sys.platform == "linux" else spawn
            run_workers(spec, console, devices or share_of_devices(task, 0, 1), start)
        else:
            from rlhf.launch.worker import run_inline

            run_inline(spec)
    except Stopped as stopped:
        again = "begins anew" if kind_of(node.stage).is_benchmark else "goes on from there"
        command = "the point by itself" if stopped.state == "pruned" else "the same command"
        told = f" {node.stage}: {stopped}; {command} {again}"
        console.print(Text.assemble((stopped.state, "yellow"), told), soft_wrap=True)
        node.directory.set_status(state=stopped.state, reason=str(stopped))
        return Outcome(stopped.state, str(stopped))
    except KeyboardInterrupt:
        node.directory.set_status(state="stopped", reason="interrupted before it could save")
        raise
    except ConfigError as error:
        return mark_failed(task, str(error), None)
    except StageFailed as error:
        return mark_failed(task, str(error), error.log)
    except LockLost:
        raise
    except Exception as error:
        node.directory.check_lock()
        log = log_file(spec, 0)
        write_atomic(log, traceback.format_exc())
        return mark_failed(task, f"{type(error).__name__}: {first_line(error)}", log)
    return Outcome("done") if node.directory.done else mark_failed(task, "no result was written", log_file(spec, 0))


def style_done(text: str) -> Text:
    """Style a line about a stage that is done."""
    return Text.assemble(("✓", "green"), f" {text}")


def mark_failed(task: Task, reason: str, log: Path | None) -> Outcome:
    """Mark a stage as failed."""
    task.node.directory.set_status(state="failed", reason=reason)
    return Outcome("failed", reason, log)
