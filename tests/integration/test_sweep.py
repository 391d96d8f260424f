"""Sweeps as a user meets them: what is planned, run, reused, extended and reported, and what bad input costs.

A few real runs through the command line share one directory; the rest runs in this process with stages that train nothing.
"""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.command import run_here
from support.quick import mark_slow

from rlhf.cli.run import Invalid, run
from rlhf.config.errors import ConfigError
from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.sweep import Outcome, Point

SMALL = (
    "model.num_hidden_layers=1", "reward_model.num_hidden_layers=1", "data.demo.demonstrations=120", "data.demo.rounds=1",
    "data.demo.heldout_prompts=16", "sft.max_steps=4", "reward.max_steps=3", "ppo.max_steps=1", "ppo.rollout_batch_size=8",
    "ppo.batch_size=8", "ppo.update_epochs=1", "rollout.max_new_tokens=8",
)  # fmt: skip
REAL = (*SMALL, "ppo.critic=actor", "ppo.max_nonfinite=1")
FIGURES = {"sft": "eval/perplexity", "reward": "eval/accuracy", "ppo": "eval/gold"}


# --- real runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(place):
    """A sweep of two points, run for real."""
    done = run_here("-m", *REAL, "ppo.kl_coef=0.01,0.05", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def stages_of(place, kind="*"):
    return sorted((place / "outputs" / "stages").glob(f"{kind}-*"))


def summary(place, point):
    return json.loads((sweep_of(place) / point / "summary.json").read_text())


def sweep_of(place):
    """The directory of the sweep that was given no name, or of the one that is run in this process."""
    (directory,) = (place / "outputs" / "sweeps").glob("rlhf*")
    return directory


def untouched(place):
    """Every file of the stages, with the time when it was written."""
    return {file: file.stat().st_mtime_ns for file in (place / "outputs" / "stages").rglob("*") if file.is_file()}


def row(text, name):
    """The cells of the row of a point, which its table names by what tells it from the others."""
    short = name.replace("ppo.", "")
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {short} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_sweep_trains_what_its_points_share_once_and_ends_in_a_table(place, swept):
    assert [len(stages_of(place, kind)) for kind in FIGURES] == [1, 1, 2]
    assert "1 sft, 1 reward, 2 ppo to run, 0 stages done before" in swept.stdout
    plan, _, table = swept.stdout.partition("Result")
    started = [line.split(":")[0] for line in plan.splitlines() if ": outputs/stages/" in line]
    assert started == ["sft, 2 of 2", "reward, 2 of 2", "ppo, kl_coef=0.01", "ppo, kl_coef=0.05"]  # each as it starts
    for kl in ("0.01", "0.05"):
        metrics = {}
        for entry in summary(place, f"ppo.kl_coef={kl}")["stages"].values():
            metrics |= entry["metrics"]
        cells = row(table, f"kl_coef={kl}")
        assert f"{metrics['eval/gold']:.2f}" in cells
        (shared,) = [line for line in table.splitlines() if line.startswith("the same in all 2 points: ")]
        assert f"{metrics['eval/perplexity']:.2f}" in shared
    assert "python -m rlhf report " in table and "Traceback" not in swept.stderr


def test_a_point_has_its_configuration_its_summary_and_links_to_its_stages(place, swept):
    sweep = sweep_of(place)
    assert (sweep.parent / "latest").resolve() == sweep.resolve()
    assert {"ppo.kl_coef=0.01", "ppo.kl_coef=0.05"} <= {point.name for point in sweep.iterdir() if point.is_dir()}
    for kl in (0.01, 0.05):
        point = sweep / f"ppo.kl_coef={kl}"
        told = summary(place, point.name)
        assert (told["point"], told["state"]) == (point.name, "done")
        assert told["overrides"] == [*REAL, f"ppo.kl_coef={kl}"]
        assert OmegaConf.load(point / "config.yaml").ppo.kl_coef == kl
        links = {link.name: link for link in (point / "stages").iterdir()}
        assert set(links) == {Path(entry["directory"]).name for entry in told["stages"].values()}
        for kind, entry in told["stages"].items():
            link = links[Path(entry["directory"]).name]
            assert link.is_symlink() and link.resolve().parent == (place / "outputs" / "stages").resolve()
            assert (entry["state"], entry["reason"], entry["log"]) == ("done", None, None)
            assert entry["metrics"] == json.loads((link / "result.json").read_text())["metrics"]
            assert FIGURES[kind] in entry["metrics"]


@pytest.fixture(scope="module")
def extended(place, swept):
    """One coefficient more, with the reward model and, first, with one of NaN, which only shows when it is used."""
    from safetensors.torch import load_file, save_file

    (reward,) = stages_of(place, "reward")
    shutil.copytree(reward / "model", place / "broken")
    weights = load_file(place / "broken" / "model.safetensors")
    weights["score.weight"].fill_(float("nan"))
    save_file(weights, place / "broken" / "model.safetensors", {"format": "pt"})
    before = untouched(place)
    done = run_here("-m", *REAL, "ppo.kl_coef=0.2", "ppo.reward=./broken,null", "name=more", cwd=place)
    assert before.items() <= untouched(place).items()
    return done


def test_a_point_that_fails_while_it_runs_does_not_stop_the_others(place, extended):
    assert extended.returncode == 1 and "2 ppo to run, 2 stages done before" in extended.stdout
    points = [json.loads(file.read_text()) for file in (place / "outputs" / "sweeps" / "more").glob("*/summary.json")]
    bad, good = sorted(points, key=lambda point: point["state"] == "done")
    assert (bad["state"], good["state"]) == ("failed", "done")
    entry = bad["stages"]["ppo"]
    assert "a score is not finite" in entry["reason"] and entry["metrics"] == {}
    assert [bad["stages"][kind]["state"] for kind in ("sft", "reward")] == ["done", "done"]
    assert "not finite" in (place / entry["log"]).read_text()  # with its traceback
    (said,) = [line for line in extended.stderr.splitlines() if line.startswith("failed ")]
    for part in (Path(entry["directory"]).name, entry["reason"], entry["log"]):
        assert part in said
    table = extended.stdout.partition("Result")[2]
    assert row(table, bad["point"])[-1] == "ppo failed" and row(table, good["point"])[-1] == ""


def test_what_was_done_in_any_sweep_is_not_done_again(place, extended):
    before = untouched(place)
    again = run_here("-m", *REAL, "ppo.kl_coef=0.01,0.05,0.2", cwd=place)
    assert again.returncode == 0 and "nothing to run, 5 stages done before" in again.stdout
    assert untouched(place) == before
    assert all(row(again.stdout.partition("Result")[2], f"ppo.kl_coef={kl}") for kl in (0.01, 0.05, 0.2))
    assert all(entry["reused"] for entry in summary(place, "ppo.kl_coef=0.2")["stages"].values())


# --- the same in this process, with stages that train nothing ------------------------------------------------------


class Stages:
    """Stands in for the training of a stage whose lock is held; `failing` and `stopping` hold names of stages or kinds."""

    def __init__(self):
        self.ran, self.failing, self.stopping = [], set(), set()

    def __call__(self, task, console, devices):
        name, kind, directory = task.node.directory.path.name, task.node.stage, task.node.directory
        self.ran.append(name)
        if {name, kind} & self.failing:
            return Outcome("failed", "out of memory", directory.path / "logs" / "rank-0.log")
        if {name, kind} & self.stopping:
            return Outcome("stopped", "saved as step-000002")
        directory.model.mkdir()
        (directory.model / "config.json").write_text("{}")
        (directory.model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        directory.finish(Result(kind, task.key, 1.0, {FIGURES[kind]: 1.5}))
        return Outcome("done")

    def kinds(self):
        """How many stages of each kind were run since the last call, and that they came in the order of the graph."""
        kinds = [name.split("-")[0] for name in self.ran]
        assert kinds == sorted(kinds, key=list(FIGURES).index) and len(set(self.ran)) == len(self.ran)
        self.ran.clear()
        return [kinds.count(kind) for kind in FIGURES]


@pytest.fixture
def stages(monkeypatch):
    stages = Stages()
    monkeypatch.setattr("rlhf.launch.scheduler.run_locked", stages)
    return stages


@pytest.fixture
def sweep(make_config, set_key, tmp_path, capsys, stages):
    """`sweep(("seed=1",), ("seed=2",))` runs these points: the exit code, and what was printed to stdout and stderr."""

    def call(*points, swept=True, dry_run=False):
        made = []
        for overrides in points:
            config = make_config(*SMALL)  # composed once
            for key, value in (override.split("=") for override in overrides):
                set_key(config, key, ast.literal_eval(value))
            config.output_root, config.dry_run = str(tmp_path / "outputs"), dry_run
            place = tmp_path / "outputs" / "sweeps" / "rlhf" / ",".join(overrides)
            made.append(Point(config, list(overrides), place, swept, build_graph(config)))
        code, said = run(made, lambda: None), capsys.readouterr()
        return code, said.out, said.err

    return call


def grid(*coefficients, seeds=(1, 2)):
    return [(f"ppo.kl_coef={kl}", f"seed={seed}") for kl in coefficients for seed in seeds]


def planned(out):
    """The rows of a plan: number, stage, after, points, steps, work."""
    lines = out.partition("Result")[0].splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def left(place):
    return sorted(str(found.relative_to(place)) for found in place.rglob("*"))


def test_the_grid_of_the_readme(sweep, stages, tmp_path):
    """2 SFT, 2 reward and 6 PPO stages; a coefficient more is two more PPO stages; the same command again is nothing."""
    code, out, _ = sweep(*grid(0.01, 0.05, 0.2), dry_run=True)
    assert code == 0 and "Plan: 6 points" in out and "2 sft, 2 reward, 6 ppo to run, 0 stages done before" in out
    assert stages.ran == [] and left(tmp_path) == []

    code, out, err = sweep(*grid(0.01, 0.05, 0.2))
    assert (code, err) == (0, "") and "2 sft, 2 reward, 6 ppo to run" in out and stages.kinds() == [2, 2, 6]
    table = out.partition("Result")[2]
    assert all(row(table, ",".join(point))[1:] == ["1.50", "1.500", "1.50"] for point in grid(0.01, 0.05, 0.2))

    code, out, _ = sweep(*grid(0.01, 0.05, 0.2, 0.4))
    assert code == 0 and "2 ppo to run, 10 stages done before" in out and stages.kinds() == [0, 0, 2]

    before = left(tmp_path)
    for dry_run in (True, False):
        code, out, _ = sweep(*grid(0.01, 0.05, 0.2, 0.4), dry_run=dry_run)
        assert code == 0 and "nothing to run, 12 stages done before" in out
        assert stages.ran == [] and left(tmp_path) == before
        reused = [entry["reused"] for entry in summary(tmp_path, "ppo.kl_coef=0.4,seed=1")["stages"].values()]
        assert reused == ([True, True, False] if dry_run else [True] * 3)  # as it was; of this run


def test_the_plan_tells_order_needs_and_work(sweep):
    _, out, _ = sweep(*grid(0.01, 0.05, seeds=(1,)), dry_run=True)
    numbers, names, after, users, steps, memory, times, costs = zip(*planned(out), strict=True)
    assert numbers == ("1", "2", "3", "4") and [name.split("-")[0] for name in names] == ["sft", "reward", "ppo", "ppo"]
    assert after == ("", "", "1, 2", "1, 2") and steps == ("4", "3", "1", "1")
    assert users == ("2 of 2", "2 of 2", "kl_coef=0.01", "kl_coef=0.05")
    assert all(float(used.partition("/")[0]) > 0 and used.endswith("/16") for used in memory)
    assert all(time.endswith((" s", " min")) for time in times) and set(costs) == {"$0.00"}
    assert "without sharing" not in out  # where a GPU-hour costs nothing


def test_a_stage_that_fails_stops_what_needs_it_alone(sweep, stages, tmp_path):
    _, out, _ = sweep(*grid(0.01, 0.05), dry_run=True)
    name = planned(out)[1][1]  # of seed 2
    stages.failing = {name}
    code, out, err = sweep(*grid(0.01, 0.05))
    assert code == 1 and stages.kinds() == [2, 2, 2]
    failed, *skipped = err.splitlines()
    place = tmp_path / "outputs" / "stages"
    assert failed == f"failed {place / name}: out of memory (log: {place / name / 'logs' / 'rank-0.log'})"
    assert len(skipped) == 2
    assert all(line.startswith(f"skipped {place}/ppo-") and line.endswith(f": {name} failed") for line in skipped)
    assert row(out, "kl_coef=0.05,seed=2")[-1] == "sft failed, ppo skipped"
    told = summary(tmp_path, "ppo.kl_coef=0.05,seed=2")
    assert told["state"] == "failed"
    assert [entry["state"] for entry in told["stages"].values()] == ["failed", "done", "skipped"]
    assert told["stages"]["sft"]["reason"] == "out of memory" and told["stages"]["sft"]["log"].endswith("rank-0.log")
    assert told["stages"]["ppo"]["reason"] == f"{name} failed"
    assert summary(tmp_path, "ppo.kl_coef=0.05,seed=1")["state"] == "done"

    stages.failing.clear()  # the same command tries again what failed and what was skipped, and that alone
    code, out, _ = sweep(*grid(0.01, 0.05))
    assert code == 0 and "1 sft, 2 ppo to run, 5 stages done before" in out and stages.kinds() == [1, 0, 2]
    assert summary(tmp_path, "ppo.kl_coef=0.05,seed=2")["state"] == "done"


def test_a_stage_that_cannot_be_written_fails_alone(sweep, stages, tmp_path):
    _, out, _ = sweep(*grid(0.01), dry_run=True)
    name = planned(out)[0][1]
    blocked = tmp_path / "outputs" / "stages" / name
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    code, _, err = sweep(*grid(0.01))
    assert code == 1 and stages.kinds() == [1, 2, 1] and blocked.read_text() == "in the way"
    failed, skipped = err.splitlines()
    assert failed.startswith(f"failed {blocked}: ") and skipped.endswith(f"{name} failed")


def test_a_sweep_that_was_stopped_says_so_and_is_no_failure(sweep, stages, tmp_path):
    stages.stopping = {"reward"}
    code, _, err = sweep(*grid(0.01, seeds=(1,)))
    assert code == 1 and "skipped" in err  # PPO, which needs it
    assert summary(tmp_path, "ppo.kl_coef=0.01,seed=1")["stages"]["reward"]["reason"] == "saved as step-000002"
    code, _, err = sweep(("stages=['sft','reward']",))
    assert (code, err) == (130, "")
    assert summary(tmp_path, "stages=['sft','reward']")["state"] == "stopped"


def test_devices_that_are_not_here_are_reported_with_all_their_points(sweep, stages, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(Invalid) as refused:
        sweep(*[(f"ppo.kl_coef={kl}", "hardware.device='cuda'", "stages=['sft','reward']") for kl in (0.01, 0.05)])
    said = "hardware.gpus_per_node=1: this machine shows 0 GPUs; try hardware=cpu"
    names = ", ".join(f"ppo.kl_coef={kl},hardware.device='cuda',stages=['sft','reward']" for kl in (0.01, 0.05))
    assert str(refused.value).splitlines() == [f"{names}: {said}"]  # of both stages, once
    assert stages.ran == [] and left(tmp_path) == []


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_is_trained(request):
    """Where a test calls the command line in this process, stages only say that they ran."""
    if "cli" in request.fixturenames:
        request.getfixturevalue("stages")


def test_a_dry_run_plans_every_point_and_leaves_nothing(cli, stages, tmp_path):
    code, out, err = cli("-m", *SMALL, "ppo.kl_coef=0.01,0.05,0.2", "seed=1,2", "dry_run=true")
    assert (code, err) == (0, "") and "2 sft, 2 reward, 6 ppo to run, 0 stages done before" in out
    assert all(f" kl_coef={kl},seed={seed} " in out for kl in (0.01, 0.05, 0.2) for seed in (1, 2))
    assert stages.ran == [] and left(tmp_path) == []


def test_a_long_plan_says_what_it_cost(cli, stages, tmp_path):
    code, out, _ = cli("-m", "seed=range(0,40)", "dry_run=true")
    assert code == 0 and "40 sft, 40 reward, 40 ppo to run" in out
    assert re.search(r"planned in [\d.]+ s of CPU time, [\d.]+ s a point", out)
    assert stages.ran == [] and left(tmp_path) == []


def test_a_sweep_over_what_holds_for_all_points_is_refused(cli, stages, tmp_path):
    code, out, err = cli("-m", *SMALL, "stage=sft", "tracking=jsonl,wandb", "seed=1,2")
    assert (code, out) == (2, "") and err.startswith("error: tracking.wandb.enabled=False,True: ")
    assert stages.ran == [] and left(tmp_path) == []


def test_a_grid_has_no_pruner(cli, stages, tmp_path):
    code, out, err = cli("-m", *SMALL, "stage=sft", "sweep.pruner=median", "seed=1,2")
    assert (code, out) == (2, "") and err.startswith("error: sweep.pruner=median: a sweep over lists runs all")
    assert stages.ran == [] and left(tmp_path) == []


def test_a_problem_that_all_points_have_is_told_once(cli, tmp_path):
    code, _, err = cli("-m", "ppo.gamma=2", "seed=range(0,10)")
    assert code == 2 and len(err.splitlines()) == 1 and err.startswith("error: ppo.gamma=2")
    code, _, err = cli("-m", "ppo.gamma=2,0.9", "seed=range(0,10)")
    assert code == 2 and len(err.splitlines()) == 1 and "and 9 more points: ppo.gamma=2" in err


def test_one_run_is_planned_too_and_the_working_directory_stays(cli, stages, tmp_path):
    code, out, _ = cli(*SMALL, "dry_run=true")
    assert code == 0 and "1 sft, 1 reward, 1 ppo to run" in out and stages.ran == []
    assert tmp_path.is_dir() and left(tmp_path) == []


def test_a_plan_needs_no_gpu_and_no_cluster(cli, stages, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    large = ("hardware=dgx8x2", "zero=3", "launcher=slurm", "sft.batch_size=16", "reward.batch_size=16")
    for words in (large, ("hardware=h100",)):
        code, out, err = cli(*words, "dry_run=true")
        assert (code, err) == (0, "") and "1 sft, 1 reward, 1 ppo to run" in out
        code, out, err = cli(*words)
        assert (code, out) == (2, "") and ("no SLURM" in err or "shows 0 GPUs" in err)
    assert stages.ran == []


def test_bad_points_are_reported_together_and_nothing_runs(cli, stages, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, out, err = cli("-m", *SMALL, "ppo.gamma=1.5,0.9,high")
    assert (code, out) == (2, "") and stages.ran == []
    lines = [line.split(": ")[:3] for line in err.splitlines()]
    assert lines == [["error", f"ppo.gamma={value}", f"ppo.gamma={value}"] for value in ("1.5", "high")]
    assert left(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "key", "hint"),
    [
        ("+sweeps=nope", "sweeps=nope: ", "kl, kl-placement, lr, "),
        ("ppo.kl_coef=", "ppo.kl_coef=: ", "give a number"),
        ("seed=1,", "override=seed=1,: ", "key=value"),
        ("ppo.kl_coef=choice()", "ppo.kl_coef=choice(): ", "key=value"),
        ("ppo.kl_coef=range(1,1)", "ppo.kl_coef=range(1,1): ", ""),
        ("ppo=demo,nope", "ppo=nope: ", "deepspeed-chat"),
        ("seed=1,2 output_root=/proc/nope", "output_root=", "choose another directory"),
        ("seed=1,2 output_root=mine.txt", "output_root=", "choose another directory"),
        ("seed=1 launcher=slurm", "launcher=slurm: ", "dry_run=true"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(cli, stages, monkeypatch, tmp_path, arguments, key, hint):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch there
    code, out, err = cli("-m", *SMALL, *arguments.split())
    assert (code, out) == (2, "") and stages.ran == []
    (line,) = err.splitlines()
    assert line.startswith("error: ") and key in line and hint in line.partition("; ")[2]
    assert left(tmp_path) == ["mine.txt"] and (tmp_path / "mine.txt").read_text() == "mine"


def test_bad_input_leaves_an_earlier_sweep_as_it_was(cli, stages, tmp_path):
    assert cli("-m", *SMALL, "stage=sft", "seed=1")[0] == 0
    files = (*(tmp_path / "outputs").rglob("summary.json"), *(tmp_path / "outputs").rglob("result.json"))
    before = left(tmp_path), {file: file.read_bytes() for file in files}
    assert len(files) == 2
    assert cli("-m", *SMALL, "stage=sft", "seed=1,x")[0] == 2
    assert (left(tmp_path), {file: file.read_bytes() for file in files}) == before


# --- directories -----------------------------------------------------------------------------------------------------


def points_in(tmp_path):
    """The points of all sweeps, by sweep, with their overrides."""
    found = {}
    for file in (tmp_path / "outputs" / "sweeps").glob("*/*/summary.json"):
        sweep, point = file.parts[-3:-1]
        if sweep != "latest":
            found.setdefault(sweep, {})[point] = json.loads(file.read_text())["overrides"]
    return found


@pytest.mark.parametrize("swept", ["data.prompt_format='{prompt}?','{prompt}!'", "rollout.stop=[a],[b]"])
def test_no_two_points_share_a_directory(cli, stages, tmp_path, swept):
    assert cli("-m", *SMALL, "stage=sft", swept)[0] == 0
    (points,) = points_in(tmp_path).values()
    assert len(points) == 2 and len({tuple(overrides) for overrides in points.values()}) == 2


def test_sweeps_without_a_name_have_directories_of_their_own(cli, stages, tmp_path):
    """Another fixed override, or another swept key, is another sweep; more values of the same keys are not."""
    assert cli("-m", *SMALL, "stage=sft", "seed=1,2")[0] == 0
    (first,) = points_in(tmp_path)
    assert (tmp_path / "outputs" / "sweeps" / "latest").readlink() == Path(first)
    before = points_in(tmp_path)[first]
    for more in (["seed=1,2", "sft.weight_decay=0.5"], ["sft.weight_decay=0.1,0.2"]):
        assert cli("-m", *SMALL, "stage=sft", *more)[0] == 0
    found = points_in(tmp_path)
    assert len(found) == 3 and found[first] == before
    latest = (tmp_path / "outputs" / "sweeps" / "latest").resolve()
    assert latest.name != first and set(found[latest.name]) == {"sft.weight_decay=0.1", "sft.weight_decay=0.2"}
    assert cli("-m", *SMALL, "stage=sft", "seed=1,2,3", "launcher.lock_timeout_s=30")[0] == 0
    found = points_in(tmp_path)
    assert len(found) == 3 and set(found[first]) == {"seed=1", "seed=2", "seed=3"}
    assert (tmp_path / "outputs" / "sweeps" / "latest").readlink() == Path(first)


def test_a_name_is_kept_and_its_points_are_never_replaced_by_others(cli, stages, tmp_path):
    assert cli("-m", *SMALL, "stage=sft", "seed=1,2", "name=mine")[0] == 0
    before = points_in(tmp_path)
    assert set(before) == {"mine"}
    code, _, err = cli("-m", *SMALL, "stage=sft", "seed=1,2", "name=mine", "sft.weight_decay=0.5")
    assert code == 2 and err.startswith("error: name=mine: ") and "choose another name" in err
    assert "seed=1 is another point's, with the defaults instead of sft.weight_decay=0.5, " in err
    assert points_in(tmp_path) == before
    assert cli("-m", *SMALL, "stage=sft", "seed=1,2", "name=mine")[0] == 0  # the same command


def test_runs_of_one_second_have_directories_of_their_own(cli, stages, tmp_path, monkeypatch):
    from hydra.core import utils

    class Stopped(utils.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 26, 1, 2, 3)

    monkeypatch.setattr(utils, "datetime", Stopped)
    for seed in (1, 2, 3):
        assert cli(*SMALL, "stage=sft", f"seed={seed}", "name=x")[0] == 0
    runs = [place for place in (tmp_path / "outputs" / "runs").iterdir() if not place.is_symlink()]
    assert len(runs) == 3 and all((place / "summary.json").is_file() for place in runs)
    assert all(place.name.startswith("2026-11-26_01-02-03-") and place.name.endswith("-x") for place in runs)
    newest = json.loads((tmp_path / "outputs" / "runs" / "latest" / "summary.json").read_text())
    assert "seed=3" in newest["overrides"]


NAMES = ["../../x", ".", "..", "/tmp/x", "a b", "a/b", "latest", "~", "x" * 300]


@pytest.mark.parametrize("name", mark_slow(NAMES, ["../../x", "..", "a b", "latest"]))
def test_a_name_that_leads_elsewhere_is_refused(cli, stages, tmp_path, name):
    code, out, err = cli("-m", *SMALL, "stage=sft", "seed=1", f"name='{name}'")
    assert (code, out) == (2, "") and stages.ran == [] and left(tmp_path) == []
    (line,) = err.splitlines()
    assert line.startswith("error: name=") and "write name=" in line
    fixed = line.rpartition("write ")[2]
    assert cli(*SMALL, "stage=sft", fixed, "dry_run=true")[0] == 0


def test_the_users_files_are_not_overwritten(cli, stages, tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / "summary.json").write_text('{"mine": 1}')
    before = left(tmp_path)
    for words in (["hydra.run.dir=."], [f"hydra.run.dir={tmp_path}"], ["-m", "seed=1,2", "hydra.sweep.dir=."]):
        code, _, err = cli(*words, *SMALL, "stage=sft")
        assert code == 2 and err.startswith(f"error: {words[-1].split('=')[0]}=") and "it holds other files" in err
        assert left(tmp_path) == before and (tmp_path / "config.yaml").read_text() == "mine"
    assert cli(*SMALL, "stage=sft", "hydra.run.dir=new")[0] == 0
    assert cli(*SMALL, "stage=sft", "hydra.run.dir=new")[0] == 0  # it is this run's own
    code, _, err = cli(*SMALL, "stage=sft", "seed=5", "hydra.run.dir=new")
    assert code == 2 and "is another point's, with the defaults instead of seed=5" in err


def test_points_that_a_directory_of_the_users_choice_would_merge_are_refused(cli, stages, tmp_path):
    code, _, err = cli("-m", *SMALL, "stage=sft", "seed=1,2", "hydra.sweep.subdir=x")
    assert code == 2 and "hydra.sweep.subdir=x: two points would share it, one with seed=1 instead of seed=2" in err
    assert left(tmp_path) == []


# --- finished stages, damaged by hand ------------------------------------------------------------------------------


@pytest.fixture
def finished(sweep, stages, tmp_path):
    """A finished point; returns the directories of its SFT and its PPO stage."""
    assert sweep(("ppo.kl_coef=0.01",))[0] == 0
    stages.ran.clear()
    return stages_of(tmp_path, "sft")[0], stages_of(tmp_path, "ppo")[0]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {
    "cut result": lambda stage: (stage / "result.json").write_text('{"stage": "sft", "fing'),
    "empty result": lambda stage: (stage / "result.json").write_text(""),
    "no weights": lambda stage: (stage / "model" / "model.safetensors").unlink(),
    "cut weights": lambda stage: cut(stage / "model" / "model.safetensors"),
    "empty weights": lambda stage: (stage / "model" / "model.safetensors").write_bytes(b""),
    "no config": lambda stage: (stage / "model" / "config.json").unlink(),
    "no model": lambda stage: shutil.rmtree(stage / "model"),
}


@pytest.mark.parametrize(
    ("damage", "asked"),
    [
        *((name, ()) for name in DAMAGE),
        *((name, ("stages=['ppo']",)) for name in ("cut result", "cut weights", "no model")),
    ],
)
def test_a_damaged_stage_that_another_one_needs_is_refused(sweep, stages, finished, damage, asked):
    sft, _ = finished
    DAMAGE[damage](sft)
    with pytest.raises(Invalid) as refused:
        sweep((*asked, "ppo.kl_coef=0.3"))
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"sft={sft}: ") and "trained again" in line.partition("; ")[2] and stages.ran == []
    shutil.rmtree(sft)  # what it says to do
    code, _, err = sweep(("ppo.kl_coef=0.3",))
    assert (code, err) == (0, "") and stages.kinds() == [1, 0, 1]


@pytest.mark.parametrize("damage", ["cut result", "empty result", "cut weights"])
def test_a_damaged_stage_that_is_given_by_path_is_refused(sweep, stages, finished, damage):
    sft, _ = finished
    DAMAGE[damage](sft)
    with pytest.raises((ConfigError, Invalid)) as refused:
        sweep((f"ppo.actor='{sft}'", "ppo.kl_coef=0.3"))
    assert str(sft) in str(refused.value) and len(str(refused.value).splitlines()) == 1 and stages.ran == []


def test_one_shard_of_several_that_is_missing_is_noticed(sweep, stages, finished):
    sft, _ = finished
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (sft / "model" / "model.safetensors").rename(sft / "model" / names[0])
    index = {"metadata": {}, "weight_map": dict(zip(("a", "b"), names, strict=True))}
    (sft / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    (sft / "manifest.json").unlink()  # checksums would name the renamed file first
    with pytest.raises(Invalid, match=names[1]):
        sweep(("ppo.kl_coef=0.3",))
    assert stages.ran == []


@pytest.mark.parametrize("damage", ["cut weights", "no model"])
def test_weights_that_nothing_needs_any_more_may_be_gone(sweep, stages, finished, damage):
    for stage in finished:
        DAMAGE[damage](stage)
    for asked in ((), ("stages=['ppo']",)):
        code, out, _ = sweep((*asked, "ppo.kl_coef=0.01"))
        assert code == 0 and "nothing to run" in out and stages.ran == []


def test_a_damaged_result_is_refused_even_if_nothing_runs(sweep, finished):
    for stage in finished:
        DAMAGE["cut result"](stage)
    with pytest.raises(Invalid) as refused:
        sweep(("ppo.kl_coef=0.01",))
    assert [line.split("=")[0] for line in str(refused.value).splitlines()] == ["sft", "ppo"]


def test_a_damaged_status_or_lost_samples_are_no_obstacle(sweep, stages, finished):
    for stage in finished:
        (stage / "status.json").write_text('{"state": "do')
    code, out, _ = sweep(("ppo.kl_coef=0.01",), swept=False)  # which shows samples, and there are none
    assert code == 0 and "gold reward of the policy" in out and stages.ran == []
