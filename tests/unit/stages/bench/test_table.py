"""Stored results as tables."""

import json

import pytest
from rich.console import Console

from rlhf.stages.bench.table import build_table, table

RECIPE = {
    "what": "step3", "lengths": "fixed", "repeats": 3, "model": "opt-1.3b", "reward_model": "opt-350m", "dtype": "bf16",
    "zero": 0, "offload": False, "lora": 0, "batch": 32, "micro_batch": 8, "prompt_tokens": 256, "response_tokens": 256,
    "update_epochs": 1, "seed": 0, "threads": 1,
}  # fmt: skip


def variant(how, seconds, problem=None, **figures):
    main = {"time/step_s": seconds} | figures
    return {"how": how, "problem": problem, "median": {} if problem else main, "rounds": [] if problem else [seconds] * 3}


def result(variants, gpus=("NVIDIA H100",), **recipe):
    return {
        "command": "python -m rlhf bench", "date": "2026-11-24", "recipe": RECIPE | recipe, "memory": "whose it is",
        "left_out": {}, "variants": variants, "gpus": list(gpus), "processor": "AMD EPYC",
        "packages": {"torch": "2.13.0", "transformers": "5.24.0"},
    }  # fmt: skip


FAST = {"throughput/samples_per_s": 32.0, "throughput/train_mfu": 0.45, "throughput/decode_share": 0.6}
STEP = {
    "baseline": variant("hf rollouts, padded", 10.0, **{"time/rollout_s": 8.0}),
    "ours": variant("hybrid rollouts, packed", 1.0, **FAST, **{"time/rollout_s": 0.5}),
}


def rows(tmp_path, *results):
    for number, found in enumerate(results):
        (tmp_path / f"bench-{number}.json").write_text(json.dumps(found))
    (tmp_path / "demo-families-cpu.json").write_text("[]")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(tmp_path).splitlines()]
    assert len({len(line) for line in lines}) == 1
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_row_says_what_was_measured_beside_what_where_and_when(tmp_path):
    (row,) = rows(tmp_path, result(STEP, lora=8, zero=2, offload=True))
    assert row["device"] == "NVIDIA H100"
    assert row["what"] == "step3, hybrid rollouts, packed"
    assert row["recipe"] == (
        "opt-1.3b with opt-350m, bf16, ZeRO 2 with offload, LoRA 8, 32 x (256 + 256) tokens, fixed lengths"
    )
    assert (row["ours"], row["baseline"], row["times faster"]) == ("1 (1 to 1) s", "10 (10 to 10) s", "10.0")
    assert (row["seq/s"], row["how near the limit"]) == ("32", "decoding 60 % of bandwidth, training MFU 45 %")
    assert row["date, versions"] == "2026-11-24, torch 2.13.0, transformers 5.24.0"


def test_a_row_tells_processor_time_and_shares_of_the_matrix_rate_where_they_are_known(tmp_path):
    own = {"time/busy_s": 2.0, "throughput/score_matrix_share": 0.66, "throughput/train_matrix_share": 0.71}
    variants = {"baseline": variant("", 9.0, **{"time/busy_s": 5.0}), "ours": variant("", 3.0, **own)}
    (row,) = rows(tmp_path, result(variants))
    assert row["times faster"] == "3.0 (2.5 by processor time)"
    assert row["how near the limit"] == "scoring 66 % of matrix rate, training 71 % of matrix rate"


def test_each_engine_and_each_stage_has_a_row(tmp_path):
    rollouts = {
        name: {"how": f"{name} rollouts", "problem": None, "median": {"time/rollout_s": seconds}, "rounds": [seconds]}
        for name, seconds in (("baseline", 4.0), ("hybrid", 1.0), ("paged", 2.0))
    }
    stages = {name: variant("", 2.0, **{"throughput/mfu": 0.3}) for name in ("sft", "reward", "ppo")}
    found = rows(tmp_path, result(rollouts, (), what="rollout"), result(stages, what="stages"))
    assert [(row["what"], row["times faster"]) for row in found] == [
        ("rollout, hybrid rollouts", "4.0"), ("rollout, paged rollouts", "2.0"),
        ("stages: sft", "–"), ("stages: reward", "–"), ("stages: ppo", "–"),
    ]  # fmt: skip
    assert found[0]["device"] == "AMD EPYC, 1 thread"
    assert found[2]["baseline"] == "–" and found[2]["how near the limit"] == "MFU 30 %"


PEERS = {
    "trl rloo": variant("TRL 1.16.0, 4 responses a prompt", 6.0) | {"beside": None},
    "rloo": variant("hybrid rollouts, packed, 4 responses a prompt", 2.0) | {"beside": "trl rloo"},
    "trl grpo": variant("TRL 1.16.0, 8 responses a prompt", 10.0) | {"beside": None},
    "grpo": variant("hybrid rollouts, packed, 8 responses a prompt", 4.0) | {"beside": "trl grpo"},
}  # fmt: skip


def test_each_algorithm_is_beside_its_trainer_of_trl(tmp_path):
    found = rows(tmp_path, result(PEERS, peer="trl"))
    assert [(row["what"], row["baseline"], row["times faster"]) for row in found] == [
        ("step3: rloo, hybrid rollouts, packed, 4 responses a prompt", "6 (6 to 6) s (TRL 1.16.0)", "3.0"),
        ("step3: grpo, hybrid rollouts, packed, 8 responses a prompt", "10 (10 to 10) s (TRL 1.16.0)", "2.5"),
    ]  # fmt: skip
    text = shown(result(PEERS, peer="trl"))
    main = next(line for line in text.splitlines() if "time/step_s" in line)
    assert "3.0x" in main and "2.5x" in main and main.count("x ") == 2


@pytest.mark.parametrize(("failed", "columns"), [("baseline", ("1 (1 to 1) s", "out of memory")), ("ours", None)])
def test_a_variant_that_did_not_fit_says_so(tmp_path, failed, columns):
    variants = STEP | {failed: variant("how", 1.0, "out of memory")}
    (row,) = rows(tmp_path, result(variants))
    assert (row["ours"], row["baseline"]) == (columns or ("out of memory", "10 (10 to 10) s"))
    assert row["times faster"] == "–"
    assert "out of memory" in shown(result(variants))


def shown(found):
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(build_table(found))
    return console.export_text()


def test_the_terminal_shows_medians_spread_and_how_often_ours_goes_into_the_baseline():
    text = shown(result(STEP))
    main, rollout = (next(line for line in text.splitlines() if name in line) for name in ("time/step_s", "rollout_s"))
    assert "10 (10 to 10)" in main and "1 (1 to 1)  10.0x" in main
    assert "16.0x" in rollout
    assert "60.0 %" in text and "whose it is" in text
