"""What is left of stages: the plan, corrected by the speed that was measured."""

import pytest

from rlhf.planner.remaining import (
    Planned,
    Progress,
    add_up_remaining,
    correct_left,
    measure_pace,
    measure_slowdowns,
    seconds_left,
)


def planned(steps=10, step=2.0, load=30.0, evaluate=0.0, save=0.0, evaluations=2, devices=8, price=4.0):
    phases = {"load": load, "train": steps * step, "evaluate": evaluate, "save": save}
    return Planned(steps, sum(phases.values()), phases, evaluations, 12.0, devices, price)


def test_before_the_first_step_the_plan_is_believed():
    assert seconds_left(planned(), 0, 10, None) == pytest.approx(20)


def test_the_measured_pace_corrects_the_steps_and_the_evaluations_but_not_the_disk():
    plan = planned(evaluate=8.0, save=5.0)
    assert seconds_left(plan, 0, 10, None) == pytest.approx(20 + 4 + 5)  # the first evaluation is over by then
    assert seconds_left(plan, 5, 10, 6.0) == pytest.approx(5 * 6 + 3 * 4 + 2.5)
    assert seconds_left(plan, 10, 10, 6.0) == 0


def test_evaluations_that_are_done_are_not_to_come():
    plan = planned(evaluate=6.0, evaluations=6)  # one before the first step, one every two steps
    assert [seconds_left(plan, step, 10, None) for step in (0, 1, 2, 9, 10)] == pytest.approx([25, 23, 20, 3, 0])


def test_without_a_plan_steps_alone_are_counted():
    assert seconds_left(None, 4, 10, 3.0) == pytest.approx(18)
    assert seconds_left(None, 4, 10, None) is None


def test_pauses_and_repeated_steps_are_no_pace():
    times = [(1, 0.0), (2, 2.0), (3, 4.0), (4, 104.0), (5, 106.0), (4, 300.0), (5, 302.0)]
    assert measure_pace(times) == pytest.approx(2.0)
    assert measure_pace(times[:1]) is None


def test_a_stage_that_has_not_begun_is_as_slow_as_others_of_its_kind():
    stages = {
        "sft": Progress("sft", (), planned(), 100.0, 0.0),  # 50 s were planned
        "ppo 1": Progress("ppo", ("sft",), planned(), 50.0, 100.0),  # it runs, and will take three times what was planned
        "ppo 2": Progress("ppo", ("sft",), planned()),
        "reward": Progress("reward", (), planned()),
    }
    left = correct_left(stages)
    assert left == {"sft": 0.0, "ppo 1": 100.0, "ppo 2": pytest.approx(150), "reward": pytest.approx(50 * 2.5)}


def test_a_stage_that_failed_says_nothing_of_others():
    stages = {"a": Progress("ppo", (), planned(), 1.0, 0.0, failed=True), "b": Progress("ppo", (), planned())}
    assert correct_left(stages)["b"] == pytest.approx(50)
    assert measure_slowdowns([("ppo", None, 7.0)]) == {}


def test_a_graph_ends_with_its_last_stage_and_costs_what_all_stages_cost():
    stages = {
        "sft": Progress("sft", (), planned(), 50.0, 0.0),
        "reward": Progress("reward", (), planned(), 25.0, 25.0),
        "ppo": Progress("ppo", ("sft", "reward"), planned()),
        "ppo 2": Progress("ppo", ("sft", "reward"), planned()),
    }
    two = add_up_remaining(stages, slots=2)
    assert two.seconds == pytest.approx(25 + 50)
    assert add_up_remaining(stages, slots=1).seconds == pytest.approx(25 + 100)
    assert two.spent_gpu_hours == pytest.approx(8 * 75 / 3600)
    assert (two.spent_dollars, two.left_dollars) == (pytest.approx(32 * 75 / 3600), pytest.approx(32 * 125 / 3600))
    unknown = add_up_remaining({**stages, "evaluate": Progress("evaluate", ("ppo",), None)}, slots=2)
    assert (unknown.seconds, unknown.left_dollars) == (None, None)
