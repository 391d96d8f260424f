"""Where stages run: in this process, in one worker per device of this machine, or as jobs of a SLURM cluster."""

from rich.console import Console

from rlhf.experiment.sweep import Outcome, Task


def execute(tasks: list[Task], console: Console) -> dict[str, Outcome]:
    """Run (or submit) the stages of a graph that are not done; returns how each ended, by fingerprint."""
    if tasks[0].config.launcher.kind == "slurm":
        from rlhf.launch.slurm import submit

        return submit(tasks, console)
    from rlhf.launch.scheduler import run_here

    return run_here(tasks, console)
