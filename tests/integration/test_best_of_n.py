"""Best-of-n data on the demo: made by one rank or two, or killed and resumed, it is the same, and other stages read it."""

import json

import pytest
from support.command import ROOT
from support.ranks import run_specs, specs
from support.small import SMALL_DEMO

from rlhf.cli.prepare import find_data
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import read_spec
from rlhf.launch.worker import run_rank
from rlhf.stages.best_of_n import run as stage

pytestmark = pytest.mark.slow

SMALL = (
    *SMALL_DEMO, "stage=sft-best-of-n-reward", "sft.max_steps=2", "reward.max_steps=2", "reward.batch_size=2",
    "best_of_n.max_prompts=11", "best_of_n.batch_size=8", "rollout.max_new_tokens=8", "rollout.stop=['e']",
    f"gold={ROOT}/tests/support/coarse_reward.py:score",
    "reward.grouped=false", "checkpoint.every_steps=1", "best_of_n.rival=random",
)  # fmt: skip


def rows(config):
    """The records of both parts, with scores, and the result."""
    made = next(node for node in build_graph(config) if node.stage == "best_of_n")
    text = "".join((made.directory.data_set / f"{part}.jsonl").read_text() for part in ("train", "heldout"))
    return [json.loads(line) for line in text.splitlines()], made.directory.result().metrics


def test_data_is_the_same_whatever_makes_it_and_another_stage_reads_it(make_config, tmp_path, monkeypatch):
    one, two, killed = (
        make_config(*SMALL, f"output_root={tmp_path / name}", f"hardware.gpus_per_node={ranks}")
        for name, ranks in (("one", 1), ("two", 2), ("killed", 1))
    )
    for file in specs(one):
        run_rank(read_spec(file))
    expected, metrics = rows(one)
    assert metrics["data/records"] + metrics["data/ties"] + metrics["data/left_out"] == 11
    assert all(row["gold_chosen"] == row["score_chosen"] != row["score_rejected"] for row in expected)

    answer, calls = stage.Answerer.answer, []

    def die(self, step):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, step)

    files = specs(killed)
    run_rank(read_spec(files[0]))
    monkeypatch.setattr(stage.Answerer, "answer", die)
    with pytest.raises(KeyboardInterrupt):
        run_rank(read_spec(files[1]))
    run_rank(read_spec(files[1]))
    assert [step.index for step in calls[:4]] == [0, 1, 2, 2] and rows(killed) == (expected, metrics)

    run_specs(specs(two)[:2], world=2)
    found, others = rows(two)
    assert found == expected and others == pytest.approx(metrics)

    reward = build_graph(one)[2]
    read = find_data(one, reward.inputs)
    assert read is not None and read.data.files.train.endswith("train.jsonl")
    assert content_id(str(build_graph(one)[1].directory.path)) == build_graph(one)[1].fingerprint
    assert reward.directory.done and reward.directory.data()["train"]["kept"] == metrics["data/records"]
