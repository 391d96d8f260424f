"""The benchmark as a stage: what it leaves, on one rank and on two, and what stopping it costs."""

import json

import pytest
from rich.console import Console
from support.command import run_rlhf
from support.small import SMALL_BENCH

from rlhf.cli.prepare import load_config
from rlhf.config.errors import ConfigError
from rlhf.experiment import stopping
from rlhf.experiment.graph import build_graph
from rlhf.experiment.sweep import Task
from rlhf.launch.scheduler import run_here
from rlhf.stages.bench import run as bench


def ran(*overrides):
    config = load_config(*SMALL_BENCH, *overrides)
    (node,) = build_graph(config)
    outcomes = run_here([Task(node, config, ["point"])], Console(quiet=True))
    return node.directory, outcomes[node.fingerprint]


def lines(directory):
    return [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize("what", ["step3", "rollout"])
def test_it_logs_a_line_per_round_and_ends_with_medians(tmp_path, what):
    directory, outcome = ran(f"output_root={tmp_path}", f"bench.what={what}", "lora=r8")
    assert outcome.state == "done", outcome.reason
    logged, result = lines(directory), directory.result()
    assert [line["step"] for line in logged] == [1, 2]
    seconds = "time/step_s" if what == "step3" else "time/rollout_s"
    assert result.metrics[seconds] == pytest.approx(sum(line[seconds] for line in logged) / 2)
    assert set(result.metrics) == set(logged[0]) - {"step", "time"}
    assert result.metrics["memory/peak_gib"] == max(line["memory/peak_gib"] for line in logged)
    left = {place.name for place in directory.path.iterdir()}
    assert not left & {"model", "random", "checkpoints", "adapter"}
    assert ran(f"output_root={tmp_path}", f"bench.what={what}", "lora=r8")[1].state == "reused"


def test_a_step_of_each_stage_has_names_of_its_own(tmp_path):
    directory, outcome = ran(f"output_root={tmp_path}", "bench.what=stages", "bench.lengths=real", "zero=2")
    assert outcome.state == "done", outcome.reason
    logged, found = lines(directory), directory.result().metrics
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    for stage, rows in zip(("sft", "reward", "ppo"), (logged[:2], logged[2:4], logged[4:]), strict=True):
        assert all(f"time/{stage}_s" in row and f"throughput/{stage}_mfu" in row for row in rows)
        assert found[f"throughput/{stage}_samples_per_s"] > 0
    assert not [name for name in found if name == "time/step_s"]


@pytest.mark.slow
def test_two_ranks_measure_together(tmp_path):
    directory, outcome = ran(f"output_root={tmp_path}", "hardware.gpus_per_node=2", "zero=3", "bench.lengths=real")
    assert outcome.state == "done", outcome.reason
    for line in lines(directory):
        assert line["throughput/samples_per_s"] == pytest.approx(4 / line["time/step_s"])


def test_one_that_is_stopped_keeps_nothing_and_begins_anew(tmp_path, monkeypatch):
    rounds = []

    def stopping_round(config, models):
        def once():
            rounds.append(1)
            if len(rounds) == 2:
                stopping.stop_requested.set()
            return {"time/step_s": 1.0, "throughput/samples_per_s": 4.0}

        return once

    monkeypatch.setattr(bench, "round_of", stopping_round)
    directory, outcome = ran(f"output_root={tmp_path}")
    assert (outcome.state, outcome.reason) == ("stopped", "asked to stop after 1 of 2 rounds")
    assert len(lines(directory)) == 1
    directory, outcome = ran(f"output_root={tmp_path}")
    assert outcome.state == "done" and [line["step"] for line in lines(directory)] == [1, 2]


@pytest.mark.slow
def test_systems_is_a_sweep_like_any_other(tmp_path):
    sweep = ("-m", "+sweeps=systems", *SMALL_BENCH[1:], "zero=0,3-offload", "lora=r8")
    done = run_rlhf(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 bench to run" in done.stdout
    result = done.stdout.split("Result")[-1]
    assert all(heading in result for heading in ("seq/s", "MFU", "of bandwidth", "peak GiB"))
    assert all(f"zero={zero},rollout={engine}" in result for zero in ("0", "3-offload") for engine in ("hybrid", "hf"))
    again = run_rlhf(*sweep, cwd=tmp_path)
    assert "nothing to run, 4 stages done before" in again.stdout


def test_nothing_is_loaded_whatever_the_configuration_names(tmp_path):
    config = load_config("stage=bench", "model=opt-1.3b", "ppo.actor=some/model", f"output_root={tmp_path}")
    assert (config.model.path, config.ppo.actor, config.model.max_position_embeddings) == (None, None, 2048)
    longer = load_config(*SMALL_BENCH, "rollout.max_new_tokens=600", "data.max_response_tokens=600")
    assert longer.model.max_position_embeddings == 620


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("stages=[sft,bench]",), "stages="),
        (("stage=bench", "bench.engines=[hybrid]"), "bench.engines="),
        (("stage=bench", "bench.what=rollout", "bench.engines=[hf]"), "bench.engines=hf"),
        (("stage=bench", "hardware.gpus_per_node=3"), "ppo.batch_size="),
        (("stage=bench", "bench.what=stages", "sft.batch_size=7", "hardware.gpus_per_node=2"), "sft.batch_size="),
        (("stage=bench", "data.tokenizer_vocab_size=1000"), "data.tokenizer_vocab_size="),
    ],
)
def test_bad_input_names_its_key(overrides, key):
    with pytest.raises(ConfigError) as error:
        load_config(*overrides)
    assert str(error.value).startswith(key)


def test_settings_of_stages_that_are_not_measured_do_not_matter():
    assert load_config("stage=bench", "sft.batch_size=7", "hardware.gpus_per_node=2").sft.batch_size == 7
