"""Pruning: what a trial hears of a stage, when the stage is told to leave, and what the search makes of it."""

import json
import time
from types import SimpleNamespace

import pytest
from support.quick import mark_slow

from rlhf.cli import pruning
from rlhf.cli.pruning import Evaluations
from rlhf.cli.search import search
from rlhf.config.command import read_command
from rlhf.config.errors import ConfigError
from rlhf.config.points import Composer
from rlhf.experiment.graph import Node
from rlhf.experiment.lock import hold
from rlhf.experiment.stage_directory import Result, StageDirectory

optuna = pytest.importorskip("optuna")

STEPS = 8


def write_line(directory, **values):
    directory.path.mkdir(parents=True, exist_ok=True)
    with directory.metrics_file.open("a") as file:
        file.write(json.dumps(values) + "\n")


@pytest.fixture
def median():
    """A study in which five trials had gold rewards of 1 at each of their steps."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    for _ in range(5):
        trial = study.ask()
        for step in range(1, STEPS + 1):
            trial.report(1.0, step)
        study.tell(trial, 1.0)
    return study


def test_each_evaluation_is_reported_once_and_what_is_none_is_not(median, tmp_path):
    directory, trial = StageDirectory(tmp_path), median.ask()
    write_line(directory, step=1, **{"reward/mean": 0.2})  # a step without an evaluation
    write_line(directory, step=2, **{"eval/gold": 2.0})
    write_line(directory, step=3, **{"eval/gold": float("nan")})
    with directory.metrics_file.open("a") as file:
        file.write('{"step": 4, "eval/go')  # is being written
    found = Evaluations(trial, directory, "eval/gold")
    found.report()
    found.report()
    assert trial.storage.get_trial(trial._trial_id).intermediate_values == {2: 2.0} and not found.is_over
    with directory.metrics_file.open("a") as file:
        file.write('ld": 0.5}\n')
    found.report()
    assert found.reported == {2, 4} and not found.is_over  # its best is above the median


@pytest.mark.parametrize(("last", "is_over"), [(STEPS, True), (2, False)])
def test_a_trial_below_the_median_is_over_unless_it_is_at_its_end(median, tmp_path, last, is_over):
    directory = StageDirectory(tmp_path)
    directory.set_status(total=last)
    write_line(directory, step=2, **{"eval/gold": 0.5})
    found = Evaluations(median.ask(), directory, "eval/gold")
    found.report()
    assert found.is_over == is_over


class Stages:
    """Stands in for running points: each logs its gold reward at all steps, and leaves when it is told to."""

    def __init__(self, root, gold, is_ours=True):
        self.root, self.gold, self.is_ours, self.count = root, gold, is_ours, 0

    def __call__(self, job, during):
        self.count += 1
        directory = StageDirectory(self.root / "stages" / f"ppo-{self.count}")
        point = SimpleNamespace(stages=[Node("ppo", f"{self.count}", directory)])
        with during(point):
            if self.is_ours:
                with hold(directory.path, 60, print):
                    self.train(directory, self.gold(self.count))
            else:
                self.train(directory, self.gold(self.count))
        return 0, point

    def train(self, directory, gold):
        directory.set_status(state="running", total=STEPS)
        for step in range(1, STEPS + 1):
            write_line(directory, step=step, **{"eval/gold": gold})
            deadline = time.monotonic() + (0.3 if gold < 1 else 0)
            while step < STEPS and time.monotonic() < deadline and not directory.prune_file.is_file():
                time.sleep(0.005)
            if directory.prune_file.is_file():
                return directory.set_status(state="pruned", reason=f"saved as step-{step:06}")
        return directory.finish(Result("ppo", "f", 1.0, {"eval/gold": gold}))


@pytest.fixture
def run_search(tmp_path, capsys, monkeypatch):
    """`run_search(stages, *arguments)`: the exit code and what was printed."""
    monkeypatch.setattr(pruning, "PERIOD_S", 0.005)

    def call(stages, *arguments):
        fixed = ["-m", "ppo.kl_coef=interval(0.01,0.5)", "name=rlhf", f"output_root={tmp_path}"]
        with Composer(read_command([*fixed, *arguments])) as composer:
            return search(composer, stages), capsys.readouterr().out

    return call


@pytest.mark.parametrize("pruner", mark_slow(["median", "hyperband"], ["median"]))
def test_a_bad_point_is_given_up_counts_and_is_not_tried_again(run_search, tmp_path, pruner):
    stages = Stages(tmp_path, lambda number: 0.0 if number == 6 else 1.0 + number)
    code, out = run_search(stages, f"sweep.pruner={pruner}", "sweep.trials=7")
    assert code == 0 and stages.count == 7
    states = [StageDirectory(tmp_path / "stages" / f"ppo-{n}").read_state().name for n in range(1, 8)]
    assert states == [*["done"] * 5, "pruned", "done"]
    assert "best of 7 (1 pruned): eval/gold 8" in out
    assert not list(tmp_path.glob("stages/*/prune"))  # the point goes on when it is run by itself
    code, out = run_search(stages, f"sweep.pruner={pruner}", "sweep.trials=7")
    assert (code, stages.count) == (0, 7) and "best of 7 (1 pruned)" in out


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "is_ours"), [("none", True), ("median", False)])
def test_nothing_is_pruned_without_a_pruner_nor_what_another_process_runs(run_search, tmp_path, pruner, is_ours):
    stages = Stages(tmp_path, lambda number: 0.99 if number == 6 else 1.0, is_ours)
    code, out = run_search(stages, f"sweep.pruner={pruner}", "sweep.trials=6")
    assert code == 0 and "best of 6: eval/gold 1" in out


def test_a_stage_that_is_evaluated_at_its_end_alone_cannot_be_pruned(run_search, tmp_path):
    with pytest.raises(ConfigError) as refused:
        run_search(Stages(tmp_path, float), "sweep.pruner=median", "ppo.eval_every=null")
    assert str(refused.value) == (
        "sweep.pruner=median: ppo is evaluated at its end alone, when there is nothing left to prune; "
        "set ppo.eval_every=10, or sweep.pruner=none"
    )
