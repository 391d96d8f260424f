"""Records of what people prefer, as data sets are read from them, and win rates."""

import json

import pytest

from rlhf.chat.preferences import WinRate, append_records, count_wins, make_pair
from rlhf.config.errors import ConfigError
from rlhf.data.records import load_dataset

TALK = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello."), ("user", "Why?"))]


def judged(verdict, left="ppo", right="sft", prompt="Why?"):
    answers = ((left, "Because."), (right, "No."))
    shown = [{"response": text, "model": name, "fingerprint": name[0]} for name, text in answers]
    return make_pair(prompt, verdict, dict(zip(("left", "right"), shown, strict=True)), {"annotator": "ann"})


def test_a_file_of_verdicts_is_a_data_set_of_pairs_and_ties_are_prompts_without_one(tmp_path, make_config):
    file = tmp_path / "feedback" / "preferences.jsonl"
    append_records(file, [judged("left"), judged("tie", prompt="How?")])
    append_records(file, [judged("right", prompt=TALK), judged("both bad", prompt="Who?")])
    split = load_dataset(make_config("data=files", f"data.files.train={file}", f"data.files.heldout={file}")).train
    assert [(pair.chosen, pair.rejected) for pair in split.comparisons] == [("Because.", "No."), ("No.", "Because.")]
    assert [message.content for message in split.comparisons[1].prompt] == ["Hi", "Hello.", "Why?"]
    assert split.unread["comparisons"] == 2 and len(split.prompts) == 4 and not split.left_out
    assert split.meta["Why?"]["annotator"] == "ann" and split.meta["Why?"]["chosen_model"] == "ppo"


def test_a_record_after_one_that_a_crash_has_cut_is_whole(tmp_path):
    file = tmp_path / "preferences.jsonl"
    file.write_text('{"prompt": "Why?", "cho')
    append_records(file, [judged("left")])
    append_records(file, [judged("right")])
    lines = file.read_text().splitlines()
    assert len(lines) == 3 and [json.loads(line)["chosen"] for line in lines[1:]] == ["Because.", "No."]


def test_a_win_rate_is_of_the_first_model_over_the_others():
    records = [
        judged("left"),
        judged("right", "sft", "ppo"),
        judged("right"),
        judged("tie"),
        judged("both bad", "sft", "ppo"),
    ]
    records += [judged("left", "ppo", "ppo"), judged("left", "base", "ppo")]
    over_sft, over_base = (rate.describe() for rate in count_wins(records, ["ppo", "sft", "base"]))
    assert {name: over_sft[name] for name in ("b", "a", "wins", "losses", "ties", "bad", "n")} == {
        "b": "ppo", "a": "sft", "wins": 2, "losses": 1, "ties": 1, "bad": 1, "n": 3,
    }  # fmt: skip
    assert over_sft["win"] == pytest.approx(2 / 3) and (over_base["a"], over_base["win"]) == ("base", 0.0)


@pytest.mark.parametrize(
    ("wins", "n", "interval"), [(7, 9, (0.4526, 0.9368)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))]
)
def test_the_interval_is_wilsons(wins, n, interval):
    rate = WinRate("a", "b", wins, n - wins, 0, 0).describe()
    assert (rate["low"], rate["high"]) == pytest.approx(interval, abs=1e-4)
    nothing = WinRate("a", "b", 0, 0, 2, 0).describe()
    assert [nothing[key] for key in ("win", "low", "high")] == [None, None, None]


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"--output=.*cannot be written"):
        append_records(tmp_path, [])
