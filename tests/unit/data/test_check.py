"""What data lacks is said before the first stage starts, and data that changes while a run goes on stops the stage that
would read it."""

import json
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from rlhf.cli import main
from rlhf.config.errors import ConfigError
from rlhf.data.check import record_problems
from rlhf.experiment.fingerprint import check_data_files, data_files
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import build_spec

ROWS = [{"prompt": f"q{i}", "response": f"a{i}", "chosen": f"c{i}", "rejected": f"x{i}"} for i in range(60)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rlhf(monkeypatch, tmp_path, capfd):
    """The exit code of `python -m rlhf data=files ...`, and what it prints."""

    def call(train, heldout, *arguments):
        GlobalHydra.instance().clear()
        files = (f"data.files.train='{train}'", f"data.files.heldout='{heldout}'", f"output_root={tmp_path}/out")
        lengths = (
            "data.max_prompt_tokens=64",
            "data.max_response_tokens=64",
            "sft.warmup_steps=0",
            "reward.warmup_steps=0",
        )
        monkeypatch.setattr(sys, "argv", ["rlhf", "data=files", *files, *lengths, *arguments])
        code = main()
        shown = capfd.readouterr()
        return code, shown.out + shown.err

    monkeypatch.chdir(tmp_path)
    yield call
    GlobalHydra.instance().clear()


def test_what_later_stages_lack_is_said_before_the_first_one_starts(rlhf, tmp_path):
    """60 rows of 3 prompts, held-out rows without pairs."""
    few = write(tmp_path / "few.jsonl", [{**row, "prompt": f"q{i % 3}"} for i, row in enumerate(ROWS)])
    unpaired = write(tmp_path / "heldnopair.jsonl", [{"prompt": f"q{i}", "response": "a"} for i in range(20)])
    sizes = ("ppo.rollout_batch_size=16", "ppo.batch_size=16", "reward.grouped=false")
    for more in ((), ("dry_run=true",)):
        code, shown = rlhf(few, unpaired, *sizes, *more)
        assert code == 2
        lines = [line.removeprefix("error: ") for line in shown.splitlines()]
        said = f"ppo.rollout_batch_size=16: a batch takes 16 prompts, and {few} has 3; give at most 3, or more records"
        assert said in lines
        assert any(line.startswith(f"data.files.heldout={unpaired}: it has no pairs") for line in lines)
    assert not (tmp_path / "out" / "stages").exists()


def test_a_glob_on_the_command_line_is_a_file(rlhf, tmp_path):
    write(tmp_path / "train1.jsonl", ROWS[:1])
    named = write(tmp_path / "train[1].jsonl", ROWS)
    code, shown = rlhf(named, named, "dry_run=true", "ppo.rollout_batch_size=32", "ppo.batch_size=32")
    assert code == 0, shown


def test_what_is_left_out_is_told(rlhf, tmp_path):
    train = write(tmp_path / "train.jsonl", [*ROWS, {"response": "a"}, {"prompt": None, "response": "b"}])
    sizes = ("ppo.rollout_batch_size=32", "ppo.batch_size=32")
    code, shown = rlhf(train, write(tmp_path / "heldout.jsonl", ROWS), "dry_run=true", *sizes)
    assert code == 0 and f"data.files.train={train}: 2 rows without a prompt left out" in shown


def test_conversations_are_read_as_such_and_the_shape_is_told(rlhf, tmp_path):
    """UltraFeedback's columns: the prompt stands in both conversations."""

    def said(number, text):
        return [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": text}]

    rows = [{"prompt": f"q{i}", "chosen": said(i, "good"), "rejected": said(i, "bad"), "score": 0.5} for i in range(60)]
    train = write(tmp_path / "train.jsonl", rows)
    sizes = ("ppo.rollout_batch_size=32", "ppo.batch_size=32")
    code, shown = rlhf(train, train, "dry_run=true", *sizes)
    line = f"{train}: 60 rows read as pairs (prompt, chosen, rejected): 60 demonstrations, 60 pairs, 60 prompts"
    assert code == 0 and f"data.files.train={line}" in shown
    code, shown = rlhf(train, train, "dry_run=true", "data.prompt_format='{prompt}'", *sizes)
    assert code == 2 and "error: data.prompt_format={prompt}: the records are conversations" in shown


def test_columns_that_are_no_shape_stop_before_anything_runs(rlhf, tmp_path):
    train = write(tmp_path / "train.jsonl", [{"frage": "q", "antwort": "a"}])
    code, shown = rlhf(train, train)
    assert code == 2 and "no row has it (found: frage, antwort)" in shown and "the shapes known are pairs (" in shown
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize("cell", [0, False, ["q", "a"], {"a": 1}])
def test_a_cell_that_is_no_text_stops_before_anything_runs(rlhf, tmp_path, cell):
    train = write(tmp_path / "train.jsonl", [*ROWS, {**ROWS[0], "chosen": cell}])
    code, shown = rlhf(train, write(tmp_path / "heldout.jsonl", ROWS))
    assert code == 2 and f"error: data.files.train={train}: row 61, column chosen: it is " in shown
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_stage_reads_the_data_that_its_fingerprint_says_or_stops_with_both_hashes(make_config, tmp_path, stage):
    path = write(tmp_path / "data.jsonl", ROWS)
    config = make_config("data=files", f"output_root={tmp_path}/out")
    config.data.files.train = config.data.files.heldout = str(path)
    (node,) = (node for node in build_graph(config) if node.stage == stage)
    spec = build_spec(node, config)
    check_data_files(config, spec.files)
    before = spec.files["data.files.train"]
    path.write_text(path.read_text().replace("a1", "b1"))
    with pytest.raises(ConfigError, match=r"^data\.files\.train=") as error:
        check_data_files(config, spec.files)
    now = data_files(config, stage)["data.files.train"]
    assert before[:16] in str(error.value) and now[:16] in str(error.value) and before != now
    path.write_text(path.read_text().replace("b1", "a1"))
    check_data_files(config, spec.files)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sft.warmup_steps=1000", "sft.warmup_steps=1000: all 561 steps of the sft stage are within it"),
        ("ppo.warmup_steps=160", "ppo.warmup_steps=160: all 160 steps of the ppo stage are within it"),
        (
            "data.demo.demonstrations=10",
            "sft.batch_size=16: a batch takes 16 demonstrations, and demo has 10; ",
        ),
        ("reward.batch_size=512", "reward.batch_size=512: a batch takes 512 prompts with pairs, and demo has 280"),
    ],
)
def test_the_demos_records_are_counted_before_anything_runs(make_config, override, line):
    config = make_config(override)
    problems = [str(problem) for stage in config.stages for problem in record_problems(config, stage)]
    assert len(problems) == 1 and problems[0].startswith(line)


def test_a_run_that_is_cut_short_may_end_within_its_warm_up(make_config):
    config = make_config("sft.max_steps=6", "reward.max_steps=6", "ppo.max_steps=2")
    assert [problem for stage in config.stages for problem in record_problems(config, stage)] == []


def test_a_data_set_that_the_hub_does_not_give_stops_before_anything_runs(monkeypatch, tmp_path, capfd):
    GlobalHydra.instance().clear()
    options = ("data=hub", "data.hub.name=org/nothing", "data.max_prompt_tokens=64", "data.max_response_tokens=64")
    monkeypatch.setattr(sys, "argv", ["rlhf", *options, f"output_root={tmp_path}"])
    assert main() == 2
    assert "error: data.hub.name=org/nothing: it cannot be loaded" in capfd.readouterr().err
    assert not (tmp_path / "stages").exists()
    GlobalHydra.instance().clear()
