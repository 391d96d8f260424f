"""Jobs on a real SLURM: two nodes of this machine, started by tests/support/slurm_cluster.py."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support import slurm_cluster as slurm
from support.command import ROOT, run_rlhf

from rlhf.cli.search import check_search, open_study, split_sweep
from rlhf.config.command import read_command
from rlhf.config.points import Composer

SMALL = (
    "sft.max_steps=6",
    "reward.max_steps=4",
    "ppo.max_steps=2",
    "sft.batch_size=16",
    "reward.batch_size=16",
    "ppo.rollout_batch_size=16",
    "ppo.batch_size=16",
    "ppo.update_epochs=1",
    "rollout.max_new_tokens=12",
    "data.demo.demonstrations=300",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=16",
    "launcher.threads=1",
)
# Half a minute of training on one rank.
LONG = (*(option for option in SMALL if not option.startswith("sft.max_steps")), "sft.epochs=120", "stage=sft")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]


@pytest.fixture(scope="module")
def cluster():
    place = Path(f"/tmp/rlhf-slurm-{os.getpid()}")
    with slurm.running(place) as running:
        yield running
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def place(cluster, tmp_path):
    """Where a test runs; no job is left in the queue after it."""
    yield tmp_path
    cluster.cancel()


def rlhf(*arguments, cwd, code=0, package=ROOT):
    """`python -m rlhf` with these arguments; what it printed."""
    done = run_rlhf(*arguments, cwd=cwd, package=package)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def stages(place, kind="*") -> list[Path]:
    return sorted((place / "outputs" / "stages").glob(f"{kind}-*"))


def status(directory) -> dict:
    return json.loads((directory / "status.json").read_text())


def history(directory) -> list[dict]:
    """The metrics that do not depend on the machine."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    machine = ("time", "throughput", "memory")
    return [{name: value for name, value in line.items() if name.split("/")[0] not in machine} for line in lines]


def weights(directory) -> dict[str, str]:
    files = directory.glob("model/*.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def steps(directory) -> int:
    file = directory / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def job_of(directory) -> str:
    return slurm.wait_for("the job's id", lambda: status(directory).get("job"))


def submitted(place, *arguments) -> Path:
    """Submit one stage and wait until it trains; its directory."""
    rlhf(*arguments, "launcher=slurm", cwd=place)
    (directory,) = stages(place)
    slurm.wait_for("the first steps", lambda: steps(directory) >= 20, 120)
    return directory


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The long stage, run in one piece on this machine."""
    place = tmp_path_factory.mktemp("unbroken")
    rlhf(*LONG, cwd=place)
    (directory,) = stages(place)
    return directory


def test_two_nodes_give_the_losses_of_one_machine(cluster, place):
    options = (*SMALL, "zero=2", "stage=sft", "launcher.wait=true")
    rlhf(*options, "launcher=slurm", "hardware.nodes=2", "hardware.gpus_per_node=2", cwd=place)
    (far,) = stages(place)
    assert {file.name for file in (far / "logs").glob("*.log")} == {f"rank-{rank}.log" for rank in range(4)}
    rlhf(*options, "hardware.gpus_per_node=4", "output_root=here", cwd=place)
    (near,) = (place / "here" / "stages").iterdir()
    assert near.name == far.name
    for one, other in zip(history(near), history(far), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_a_sweep_runs_along_its_graph_and_is_not_submitted_twice(cluster, place):
    """In a directory that holds the package, as a checkout does."""
    sweep = ("-m", *SMALL, "ppo.kl_coef=0.01,0.2", "seed=1,2", "launcher=slurm")
    for name in ("rlhf", "conf", "sweeps", "experiments"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    started = time.time()
    assert "submitted" in rlhf(*sweep, cwd=place, package=place)
    assert time.time() - started < 30
    jobs = {directory.name: job_of(directory) for directory in stages(place)}
    assert len(jobs) == 8
    arrays = {kind: {jobs[d.name].split("_")[0] for d in stages(place, kind)} for kind in ("sft", "reward", "ppo")}
    assert {kind: len(found) for kind, found in arrays.items()} == {"sft": 1, "reward": 1, "ppo": 2}  # PPO: one per seed
    assert rlhf(*sweep, cwd=place, package=place).count("queued before") >= 4
    assert {directory.name: job_of(directory) for directory in stages(place)} == jobs
    # What was submitted is what runs, whatever becomes of the code meanwhile.
    for file in ("stages/ppo/train.py", "launch/worker.py", "launch/slurm_node.py"):
        (place / "rlhf" / file).write_text("raise SystemExit('edited')\n")
    slurm.wait_for("the sweep", lambda: all((d / "result.json").exists() for d in stages(place)), 240, every_s=1)
    assert "nothing to run, 8 stages done before" in rlhf(*sweep, cwd=place)


def test_a_requeued_job_ends_as_the_unbroken_run(cluster, place, unbroken):
    directory = submitted(place, *LONG)
    job = job_of(directory)
    cluster.run("scontrol", "requeue", job)
    slurm.wait_for("the second life", lambda: status(directory).get("attempts") == 2, 60)
    slurm.wait_for("its end", (directory / "result.json").exists, 240, every_s=1)
    assert "resumed sft at step-" in (directory / "logs" / "rank-0.log").read_text()
    assert history(directory) == history(unbroken) and weights(directory) == weights(unbroken)
    assert cluster.wait_job(job, "COMPLETED")["Restarts"] == "1"


def test_a_time_limit_saves_and_queues_again(cluster, place, unbroken):
    """The shortest limit that SLURM has is a minute; the signal comes up to half a minute sooner than it should."""
    slower = ("launcher.time_minutes=1", "launcher.signal_delay_s=35", "tracking.tensorboard=true")
    directory = submitted(place, *LONG, *slower, "checkpoint.every_steps=5")
    slurm.wait_for("its end", (directory / "result.json").exists, 400, every_s=1)
    assert status(directory)["attempts"] >= 2 and status(directory)["requeues"] == status(directory)["attempts"] - 1
    assert history(directory) == history(unbroken) and weights(directory) == weights(unbroken)


def test_the_limit_of_requeues_ends_a_job_that_can_be_resumed(cluster, place):
    limits = ("launcher.time_minutes=1", "launcher.signal_delay_s=40", "launcher.max_requeues=0", "sft.epochs=5000")
    rlhf(*LONG, *limits, "launcher=slurm", cwd=place)
    (directory,) = stages(place)  # the signal may come before many steps are done
    job = job_of(directory)
    assert cluster.wait_job(job, "FAILED", timeout_s=180)
    assert status(directory)["state"] == "stopped" and "launcher.max_requeues=0" in status(directory)["reason"]
    assert list((directory / "checkpoints").glob("step-*"))


def test_a_failing_stage_fails_in_slurm_and_stops_what_needs_it(cluster, place):
    broken = ("sft.learning_rate=1", "sft.weight_decay=1000", "sft.max_nonfinite=1", "sft.warmup_steps=0")
    told = rlhf("-m", *SMALL, *broken, "seed=1", "launcher=slurm", "launcher.wait=true", cwd=place, code=1)
    (sft,), (ppo,) = stages(place, "sft"), stages(place, "ppo")
    assert cluster.job(job_of(sft))["JobState"] == "FAILED"
    assert cluster.job(job_of(ppo)).get("JobState") in ("CANCELLED", None)
    assert status(sft)["state"] == "failed" and "not finite" in status(sft)["reason"]
    assert f"failed outputs/stages/{sft.name}" in told and "not finite" in told
    assert f"skipped outputs/stages/{ppo.name}: {sft.name} failed" in told
    assert (stages(place, "reward")[0] / "result.json").exists()


def test_a_rank_that_dies_on_one_node_ends_the_job_on_both(cluster, place):
    endless = ("sft.epochs=5000", "hardware.nodes=2", "launcher.lock_timeout_s=60")
    directory = submitted(place, *LONG, *endless)
    job = job_of(directory)
    found = subprocess.run(
        ["pgrep", "-f", f"rlhf.launch.worker .*{directory.name}"], capture_output=True, text=True, check=True
    )
    os.kill(int(found.stdout.split()[-1]), 9)
    assert cluster.wait_job(job, "FAILED", timeout_s=60)
    assert status(directory)["state"] == "failed" and "SIGKILL" in status(directory)["reason"]
    left = subprocess.run(
        ["pgrep", "-f", f"rlhf.launch.worker .*{directory.name}"], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""


def test_a_cancelled_job_can_be_resumed(cluster, place, unbroken):
    directory = submitted(place, *LONG)
    job = job_of(directory)
    cluster.run("scancel", job)
    assert cluster.wait_job(job, "CANCELLED")
    slurm.wait_for("what it saved", lambda: status(directory)["state"] == "stopped", 30)
    (kept,) = (directory / "checkpoints").glob("step-*")
    done = rlhf(*LONG, cwd=place)
    assert f"resumed sft at {kept.name}" in done
    assert history(directory) == history(unbroken) and weights(directory) == weights(unbroken)


def test_preemption_by_another_job(cluster, place, unbroken):
    """A job of a partition that gives way; SLURM takes its nodes after a grace time and queues it again."""
    directory = submitted(place, *LONG, "launcher.partition=preemptible")
    blocker = cluster.run("sbatch", "-N2", "--exclusive", "-pmain", "--parsable", "--wrap=sleep 20", "-o/dev/null").strip()
    slurm.wait_for("the second life", lambda: status(directory).get("attempts") == 2, 240)
    slurm.wait_for("its end", (directory / "result.json").exists, 240, every_s=1)
    assert cluster.job(blocker).get("JobState") in ("COMPLETED", None)
    assert history(directory) == history(unbroken) and weights(directory) == weights(unbroken)


def test_a_search_gives_up_a_point_whose_job_runs_on_the_cluster(cluster, place, monkeypatch):
    """Five trials are in the study before, each better than any model can be, so that the median prunes the sixth."""
    optuna = pytest.importorskip("optuna")
    monkeypatch.chdir(place)
    words = ["-m", *LONG, "sft.eval_every=10", "sft.learning_rate=interval(1e-4,1e-3)", "name=search", "sweep.trials=6"]
    words += ["sweep.pruner=median", "sweep.objective=eval/perplexity", "sweep.direction=minimize", "launcher=slurm"]
    words += ["launcher.wait=true"]
    with Composer(read_command(words)) as composer:
        fixed, space = split_sweep(composer)
        composer.sweep_directory.mkdir(parents=True)
        study = open_study(check_search(composer, fixed, space), space, composer.sweep_directory)
        for _ in range(5):
            study.add_trial(optuna.trial.create_trial(value=0.5, intermediate_values={10 * n: 0.5 for n in range(1, 1000)}))
    told = rlhf(*words, cwd=place)
    (directory,), (point,) = stages(place), (place / "outputs" / "sweeps" / "search").glob("*/summary.json")
    assert status(directory)["state"] == json.loads(point.read_text())["state"] == "pruned"
    assert f"outputs/stages/{directory.name}: pruned saved as step-" in told and not (directory / "result.json").exists()
    assert list((directory / "checkpoints").glob("step-*"))
    assert cluster.wait_job(job_of(directory), "FAILED")  # so that no job starts that needs the stage


def test_what_slurm_refuses_is_one_line(cluster, place):
    told = rlhf(*SMALL, "stage=sft", "launcher=slurm", "launcher.partition=nope", cwd=place, code=2)
    assert "error: launcher=slurm: SLURM refused the job" in told and "partition" in told and "Traceback" not in told
    assert status(stages(place)[0])["state"] == "failed"
