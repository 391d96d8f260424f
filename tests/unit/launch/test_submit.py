"""Which stages are submitted as jobs, without a SLURM: its queue and sbatch are stand-ins."""

from rich.console import Console

from rlhf.experiment.graph import Node
from rlhf.experiment.stage_directory import Result, StageDirectory
from rlhf.experiment.sweep import Outcome, Task
from rlhf.launch import slurm


def test_a_stage_whose_job_ended_since_the_plan_was_made_is_not_submitted_again(monkeypatch, make_config, tmp_path):
    config = make_config(f"output_root={tmp_path}", "launcher=slurm")
    ended, needing = (StageDirectory(tmp_path / "stages" / name) for name in ("ended", "needing"))
    tasks = [Task(Node("sft", "ended", ended), config), Task(Node("reward", "needing", needing, {}, ("ended",)), config)]
    ended.set_status(state="running", job="7")
    submitted = []

    def active_jobs():
        ended.finish(Result("sft", "ended", 1.0, {}))  # and then leaves the queue
        return set()

    def submit_group(group, jobs, place):
        submitted.extend((task.key, dict(jobs)) for task in group)
        return [str(8 + number) for number in range(len(group))]

    monkeypatch.setattr(slurm, "list_active_jobs", active_jobs)
    monkeypatch.setattr(slurm, "submit_group", submit_group)
    outcomes = slurm.submit(tasks, Console(quiet=True))
    assert submitted == [("needing", {})]  # and it waits for no job
    assert outcomes["ended"] == Outcome("done")
    assert outcomes["needing"].state == "queued"
