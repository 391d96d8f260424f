import pytest

from rlhf.tracking.progress import Bar, rate


@pytest.mark.parametrize(
    ("per_second", "shown"), [(0.0123, "0.012"), (0.4, "0.40"), (8.02, "8.0"), (10.4, "10"), (1234.5, "1234")]
)
def test_a_slow_model_does_not_stand_still(per_second, shown):
    assert rate(per_second) == shown


def test_what_is_done_between_two_steps_is_said(capsys):
    with Bar("sft", 12, show=True, done=3) as bar:
        bar.say("evaluating")
        bar.last = 0.0  # a while later
        bar.update(12, {"loss": "1.2"})
    assert capsys.readouterr().out.splitlines() == ["   sft 3/12  evaluating", "   sft 12/12  loss 1.2"]
