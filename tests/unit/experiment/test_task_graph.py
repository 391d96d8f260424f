"""The graph of a sweep's stages: each once, those that others need first, what cannot run any more told from what can."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf import load_config
from rlhf.config.terminal import Terminal
from rlhf.experiment.graph import Node, build_graph
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.sweep import Outcome, Point, Task, blocked_by, build_task_graph
from rlhf.launch.remaining import print_failure

NUMBERS = st.integers(0, 2)
# (sft, reward, ppo) of a point, as numbers: points that share a number share the stage.
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=12)
GOOD, BAD = ("done", "reused"), ("failed", "skipped", "stopped", "queued")


CONFIG = load_config()


def stage(kind, name, *parents):
    return Node(kind, name, StageDirectory(Path("stages") / name), {}, parents)


def sweep(shapes):
    """Points of a sweep whose stages are told apart by numbers; a PPO stage is its inputs' too."""
    points = []
    for number, (s, r, p) in enumerate(shapes):
        sft, reward = stage("sft", f"sft-{s}"), stage("reward", f"reward-{r}")
        ppo = stage("ppo", f"ppo-{s}{r}{p}", sft.fingerprint, reward.fingerprint)
        points.append(Point(CONFIG, [], Path("sweeps") / "x" / f"point-{number}", True, [sft, reward, ppo]))
    return points


def test_a_failed_stage_says_at_once_why_and_of_which_point_it_is(capsys):
    tasks = build_task_graph(sweep([(0, 0, 0), (0, 0, 1)]))
    assert [task.label for task in tasks] == ["2 of 2", "2 of 2", "point-0", "point-1"]
    for task, outcome in ((tasks[2], Outcome("failed", "out of memory")), (tasks[3], Outcome("done"))):
        print_failure(task, outcome, Terminal())
    assert capsys.readouterr().out == "failed ppo, point-0: out of memory\n"
    assert {task.label for task in build_task_graph(sweep([(0, 0, 0)]))} == {""}


@given(POINTS)
def test_every_stage_is_there_once_and_after_what_it_needs(shapes):
    points, seen = sweep(shapes), set()
    tasks = build_task_graph(points)
    for task in tasks:
        assert task.key not in seen and set(task.parents) <= seen
        seen.add(task.key)
    assert seen == {node.fingerprint for point in points for node in point.stages}
    for task in tasks:
        assert task.points == [point.name for point in points if task.node in point.stages]
    kinds = [task.node.stage for task in tasks]
    assert kinds == sorted(kinds, key=["sft", "reward", "ppo"].index)


@given(POINTS, st.sets(st.sampled_from([f"{kind}-{n}" for kind in ("sft", "reward") for n in range(3)])))
def test_what_fails_stops_what_needs_it_and_nothing_else(shapes, failing):
    tasks, outcomes = build_task_graph(sweep(shapes)), {}
    by_key = {task.key: task for task in tasks}
    for task in tasks:
        blocked = blocked_by(task, outcomes, by_key)
        assert (blocked is not None) == bool(failing & set(task.parents))
        outcomes[task.key] = Outcome("skipped" if blocked else "failed" if task.key in failing else "done")
    assert {task.key for task in tasks if outcomes[task.key].state == "failed"} == failing & set(by_key)


@pytest.mark.parametrize("state", GOOD + BAD)
def test_a_need_that_ended_badly_is_named(state):
    sft, ppo = Task(stage("sft", "sft-a"), None), Task(stage("ppo", "ppo-b", "sft-a"), None)
    why = blocked_by(ppo, {sft.key: Outcome(state)}, {sft.key: sft, ppo.key: ppo})
    assert why == (None if state in GOOD else Outcome("pruned" if state == "pruned" else "skipped", f"sft-a {state}"))


def test_a_need_that_has_not_ended_or_was_done_before_blocks_nothing():
    ppo = Task(stage("ppo", "ppo-b", "sft-a", "reward-a"), None)
    assert blocked_by(ppo, {}, {ppo.key: ppo}) is None


def test_a_real_sweep_shares_what_its_points_have_in_common(make_config, tmp_path):
    points = []
    for overrides in ((f"ppo.kl_coef={kl}", f"seed={seed}") for kl in (0.01, 0.05, 0.2) for seed in (1, 2)):
        config = make_config(*overrides)
        config.output_root = str(tmp_path)
        points.append(Point(config, list(overrides), tmp_path / "sweeps" / ",".join(overrides), True, build_graph(config)))
    tasks = build_task_graph(points)
    assert [task.node.stage for task in tasks] == ["sft"] * 2 + ["reward"] * 2 + ["ppo"] * 6
    assert [len(task.points) for task in tasks] == [3, 3, 3, 3, 1, 1, 1, 1, 1, 1]
    assert [task.config.seed for task in tasks] == [1, 2] * 5
    for point in points:
        sft, reward, ppo = point.stages
        assert ppo.parents == (sft.fingerprint, reward.fingerprint)
