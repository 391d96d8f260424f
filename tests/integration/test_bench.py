"""The benchmark's whole path, on the CPU and as small as can be; how fast anything is, is not tested."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from support.command import ROOT, run_here
from support.quick import mark_slow

from rlhf.cli.bench import describe_recipe, file_name, list_groups, list_variants, measure_stages, read_configuration
from rlhf.config.errors import ConfigError
from rlhf.stages.bench.metrics import TIME_OF
from rlhf.stages.bench.table import table

SMALL = (
    "data.max_prompt_tokens=20", "data.max_response_tokens=12", "rollout.max_new_tokens=12", "ppo.rollout_batch_size=4",
    "ppo.batch_size=4", "sft.batch_size=4", "reward.batch_size=4", "bench.repeats=1", "bench.lengths=real",
)  # fmt: skip
QUICK = ("step3",)  # tried whenever tests run, the others by CI; in tests/unit/stages all are
VARIANTS = {what: {"baseline", "ours"} for what in ("step3", "score", "train", "sft", "reward")}
VARIANTS |= {"rollout": {"baseline", "hybrid"}, "stages": {"sft", "reward", "ppo"}}


def bench(*arguments, cwd):
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(cwd), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf", "bench", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("what", mark_slow(VARIANTS, QUICK))
def test_a_result_holds_figures_recipe_versions_and_device(tmp_path, monkeypatch, what):
    monkeypatch.setattr("rlhf.runtime.distributed.leave", lambda: None)  # the other tests' stages need the process group
    engines = ["bench.engines=[hybrid]"] if what == "rollout" else []
    done = run_here("bench", *SMALL, f"bench.what={what}", *engines, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs" / "bench").glob(f"bench-{what}-real-opt-tiny-cpu-*.json")
    assert str(file.relative_to(tmp_path)) in done.stdout
    found = json.loads(file.read_text())
    assert set(found["variants"]) == VARIANTS[what]
    for variant in found["variants"].values():
        assert variant["problem"] is None
        assert variant["rounds"] == [variant["median"][TIME_OF[what]]]
        assert variant["median"]["memory/peak_gib"] > 0
    assert found["recipe"]["response_tokens"] == 12 and found["recipe"]["threads"] == 1
    assert found["packages"]["torch"] and "git" in found and found["date"]
    assert found["command"].startswith("python -m rlhf bench data.max_prompt_tokens=20 ")
    assert TIME_OF[what] in done.stdout and "memory/peak_gib: of the whole process" in done.stdout
    rows = table(file.parent).splitlines()
    assert len(rows) == 2 + len(VARIANTS[what] - {"baseline"})
    assert "opt-tiny with opt-tiny" in rows[2] and rows[0].count("|") == rows[2].count("|")


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["real", "fixed"])
def test_trls_trainers_take_turns_with_ours_on_responses_of_the_same_lengths(tmp_path, lengths):
    pytest.importorskip("trl")
    done = bench(*SMALL, "bench.peer=trl", f"bench.lengths={lengths}", "ppo.rollout_batch_size=16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # other lengths than ours would be an error
    (file,) = (tmp_path / "outputs" / "bench").glob(f"bench-trl-{lengths}-opt-tiny-cpu-*.json")
    variants = json.loads(file.read_text())["variants"]
    assert list(variants) == ["trl rloo", "rloo", "trl grpo", "grpo"]
    for name, variant in variants.items():
        times = {part: variant["median"][f"time/{part}_s"] for part in ("rollout", "score", "train", "step")}
        assert times.pop("step") == pytest.approx(sum(times.values())) and min(times.values()) > 0
        assert ("throughput/train_mfu" in variant["median"]) == (not name.startswith("trl"))
        assert variant["beside"] == (None if name.startswith("trl") else f"trl {name}")


def test_stored_results_are_a_table(tmp_path):
    done = bench("--table", cwd=tmp_path)
    assert done.stdout == table(ROOT / "experiments" / "results") + "\n"


def test_help_says_what_can_be_measured(tmp_path):
    done = bench("--help", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert all(f"bench.what={what}" in done.stdout for what in ("rollout", "train", "sft", "stages"))


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("bench.what=everything",), "bench.what=everything: there is no such choice; choose one of step3, rollout"),
        (("bench.engines=[hybrid]",), "bench.engines=['hybrid']: bench.what=step3 measures the configuration's own"),
        (("bench.what=rollout", "bench.engines=hybrid"), "bench.engines=hybrid: wrong type; give a list"),
        (("-m", "zero=0,2"), "argument=-m: this command measures one configuration; sweep a benchmark with"),
        (("--cfg", "job"), "argument=--cfg"),
        (("stage=ppo",), "stage=ppo: this command runs no stage"),
        (("hardware.gpus_per_node=2", "zero=3"), "hardware.gpus_per_node=2: variants take turns in one process"),
        (("ppo.kl_cof=1",), "ppo.kl_cof=1: there is no such key; did you mean ppo.kl_coef?"),
        (("+experiments=opt-13b-dgx",), "experiments=opt-13b-dgx: there is no such option; did you mean opt-13b-dgx8?"),
        (("model=opt-1.3",), "model=opt-1.3: there is no such option"),
        (("ppo.batch_size=5",), "ppo.rollout_batch_size=32: it is not a multiple"),
    ],
)  # fmt: skip
def test_bad_input_names_key_value_and_fix(arguments, start):
    with pytest.raises(ConfigError) as error:
        read_configuration(list(arguments))
    assert str(error.value).startswith(start)


def test_bad_input_is_one_line(tmp_path):
    done = bench("bench.what=everything", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: bench.what=everything") and done.stderr.count("\n") == 1


def test_several_devices_are_told_what_to_type():
    with pytest.raises(ConfigError, match=r"`python -m rlhf \+experiments=bench hardware.gpus_per_node=2 zero=3`"):
        read_configuration(["hardware.gpus_per_node=2", "zero=3"])


@pytest.mark.parametrize(
    ("arguments", "reward_model"),
    [
        ((), "opt-tiny"),
        (("model=opt-350m",), "opt-350m"),
        (("model=opt-1.3b",), "opt-350m"),
        (("model=opt-1.3b", "reward_model=opt-125m"), "opt-125m"),
        (("model=pythia-1.4b",), "pythia-1b"),
    ],
)
def test_the_published_critic_is_beside_every_larger_opt(arguments, reward_model):
    config = read_configuration(list(arguments))
    assert config.reward_model.name == reward_model
    assert (config.model.path, config.reward_model.path, config.stages) == (None, None, ["bench"])
    assert config.model.max_position_embeddings >= 512


def test_a_preset_of_the_users_joins_the_recipe_and_overrides_win():
    config = read_configuration(
        ["+experiments=opt-1.3b-a6000", "hardware=cpu", "precision=fp32", "rollout.max_new_tokens=100"]
    )
    given = config.model.name, config.ppo.gradient_checkpointing, config.rollout.max_new_tokens
    assert given == ("opt-1.3b", True, 100)
    assert (config.stages, config.rollout.fixed_length) == (["bench"], True)


def test_beside_trl_are_rloo_and_grpo_or_what_is_typed(monkeypatch):
    monkeypatch.setattr("rlhf.cli.bench.find_spec", lambda name: True)
    for typed, algorithms in (([], ["rloo", "grpo"]), (["algorithm=rloo"], ["rloo"])):
        arguments = ["bench.peer=trl", *typed]
        groups = list_groups(read_configuration(arguments), arguments)
        assert [group.algorithm for group in groups] == algorithms
        for group in groups:
            found, _ = list_variants(group)
            assert [(name, own.bench.peer, own.algorithm) for name, own in found.items()] == [
                (f"trl {group.algorithm}", "trl", group.algorithm), (group.algorithm, None, group.algorithm),
            ]  # fmt: skip


@pytest.mark.parametrize(
    ("installed", "arguments", "start"),
    [
        (False, (), r"bench\.peer=trl: it needs the package trl; pip install 'rlhf\[trl\]'"),
        (True, ("bench.what=rollout",), r"bench\.what=rollout: TRL's trainers are measured by whole steps"),
        (True, ("algorithm=dapo",), r"algorithm=dapo: no trainer of TRL's .*algorithm=rloo or algorithm=grpo"),
        (True, ("lora=r8",), r"lora\.rank=8: TRL's trainers are measured with all weights"),
        (True, ("zero=2",), r"zero\.stage=2: TRL's trainers are measured with all weights"),
    ],
)  # fmt: skip
def test_what_trl_does_not_do_is_refused(monkeypatch, installed, arguments, start):
    monkeypatch.setattr("rlhf.cli.bench.find_spec", lambda name: installed or None)
    with pytest.raises(ConfigError, match=f"^{start}"):
        list_groups(read_configuration(["bench.peer=trl", *arguments]), ["bench.peer=trl", *arguments])


def ways(found):
    return {name: (config.rollout.engine, config.ppo.packing) for name, config in found.items()}


def test_the_baseline_is_what_is_usual_and_comes_first():
    found, _ = list_variants(read_configuration([]))
    assert list(ways(found).items()) == [("baseline", ("hf", "none")), ("ours", ("hybrid", "packed"))]
    found, _ = list_variants(read_configuration(["bench.what=train"]))
    assert ways(found) == {"baseline": ("hf", "none"), "ours": ("hybrid", "packed")}
    assert {name: config.bench.peer for name, config in found.items()} == {"baseline": "deepspeed-chat", "ours": None}
    assert list(list_variants(read_configuration(["bench.peer=null"]))[0]) == ["ours"]
    found, _ = list_variants(read_configuration(["bench.what=rollout", "bench.engines=[paged,hybrid]"]))
    assert [config.rollout.engine for config in found.values()] == ["hf", "paged", "hybrid"]


def test_work_that_the_peer_does_not_do_is_refused():
    with pytest.raises(ConfigError, match=r"^ppo\.ptx_coef=0\.1: a step of bench\.peer=deepspeed-chat does no such work"):
        list_variants(read_configuration(["ppo.ptx_coef=0.1"]))
    assert list(list_variants(read_configuration(["ppo.ptx_coef=0.1", "bench.peer=null"]))[0]) == ["ours"]


@pytest.mark.parametrize("given", [True, False])
def test_an_engine_that_the_checks_refuse_is_left_out_unless_it_is_asked_for(monkeypatch, given):
    def check(config):
        if config.rollout.engine == "paged":
            raise ConfigError("rollout.engine", "paged", "no", "yes")

    config = read_configuration(["bench.what=rollout", *(["bench.engines=[paged]"] if given else [])])
    monkeypatch.setattr("rlhf.cli.bench.check", check)
    if given:
        with pytest.raises(ConfigError, match=r"^rollout\.engine=paged"):
            list_variants(config)
    else:
        found, left_out = list_variants(config)
        assert list(found) == ["baseline", "hybrid"] and left_out == {"paged": "rollout.engine=paged: no; yes"}


@pytest.mark.parametrize("building", [True, False])
def test_a_stage_that_does_not_fit_says_so_and_the_others_go_on(monkeypatch, building):
    def rounds(fits):
        @contextmanager
        def made(config, place):
            if building and not fits:
                raise torch.OutOfMemoryError
            yield lambda variant: once if fits else once_too_large

        return made

    def once():
        return {"time/step_s": 1.0}

    def once_too_large():
        raise torch.OutOfMemoryError

    subjects = {"sft": rounds(True), "reward": rounds(False), "ppo": rounds(True)}
    monkeypatch.setattr("rlhf.stages.bench.run.benchmarked_stages", lambda config: subjects)
    found = measure_stages(read_configuration(["bench.what=stages", "bench.repeats=2"]))
    assert {name: measured.problem for name, measured in found.items()} == {
        "sft": None, "reward": "out of memory", "ppo": None,
    }  # fmt: skip
    assert len(found["ppo"].rounds) == 2


def test_other_settings_on_one_day_go_into_another_file():
    names, settings = set(), ("lora=r8", "ppo.micro_batch_size=4", "zero=2", "rollout=hf", "ppo.reuse_forward=true")
    for arguments in ([], *([word] for word in settings)):
        config = read_configuration(arguments)
        found, _ = list_variants(config)
        how = {name: {"how": str(ways(found)[name])} for name in found}
        names.add(file_name(config, {"recipe": describe_recipe(config), "variants": how}))
    assert len(names) == 1 + len(settings)
    assert all(name.startswith("bench-step3-fixed-opt-tiny-cpu-2") for name in names)
