import pytest

from rlhf.planner.remaining import Planned
from rlhf.tracking import progress
from rlhf.tracking.progress import Bar, format_rate


@pytest.mark.parametrize(
    ("per_second", "shown"), [(0.0123, "0.012"), (0.4, "0.40"), (8.02, "8.0"), (10.4, "10"), (1234.5, "1234")]
)
def test_a_slow_model_does_not_stand_still(per_second, shown):
    assert format_rate(per_second) == shown


def test_what_is_done_between_two_steps_is_said(capsys):
    with Bar("sft", 12, show=True, done=3) as bar:
        bar.say("evaluating")
        bar.last = 0.0  # a while later
        bar.update(12, {"loss": "1.2"})
    assert capsys.readouterr().out.splitlines() == ["   sft 3/12  evaluating", "   sft 12/12  loss 1.2"]


def test_the_time_left_is_planned_at_first_and_then_measured(capsys, monkeypatch):
    now = iter([100.0, 100.0, 110.0, 110.0, 170.0, 170.0, 170.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now, 170.0))
    planned = Planned(10, 60.0, {"train": 50.0, "evaluate": 10.0}, 2, 1.0, 1, 0.0)
    with Bar("sft", 10, show=True, planned=planned) as bar:
        for done in (1, 2):
            bar.last = 0.0
            bar.update(done, {"loss": "1.2"})
        bar.last = 0.0
        bar.say("evaluating")
        bar.last = 0.0
        bar.update(3, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "   sft 1/10  50 s left  loss 1.2"  # nine steps of 5 s, and the last evaluation
    assert lines[1] == "   sft 2/10  1 m 30 s left  loss 1.2"  # a step took 10 s
    assert lines[3] == "   sft 3/10  1 m 20 s left  "  # an evaluation is no step
