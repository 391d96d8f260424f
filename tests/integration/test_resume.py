"""A stage that is killed or stopped and started again ends as the one that was left alone: the same metrics, the same
samples, the same weights to the last bit. Stages run in processes (tests/support/crash_server.py);
one stage survives a chain of deaths, each attempt resuming what the attempt before it left."""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command import ROOT
from support.crash_server import CrashServer, FaultPoint
from support.precision_marks import fp16_case
from support.quick import mark_slow

from rlhf.catalog.metric import MACHINE_GROUPS
from rlhf.config.errors import ConfigError
from rlhf.experiment.checkpoints import MANIFEST, checkpoint_dirs, file_digest, integrity_error, read_manifest
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import write_spec
from rlhf.experiment.stopping import EXIT_CHECKPOINTED

SMALL = (
    "data.demo.demonstrations=60",
    "data.demo.answers_per_prompt=2",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=8",
    "sft.max_steps=4",
    "sft.batch_size=16",  # three steps an epoch
    "sft.epochs=2",
    "sft.dropout=0.1",
    "sft.eval_every=2",
    "reward.max_steps=4",
    "reward.batch_size=16",
    "reward.dropout=0.1",
    "reward.normalize=standard",
    "ppo.max_steps=3",
    "ppo.rollout_batch_size=16",
    "ppo.batch_size=8",
    "ppo.update_epochs=2",
    "ppo.eval_every=2",
    "ppo.ema=true",
    "ppo.kl_controller=adaptive",
    "ppo.kl_horizon=100",
    "ppo.dropout=0.1",
    "ppo.ratio_tolerance=100",
    "rollout.max_new_tokens=8",
    "zero.stage3_param_persistence_threshold=0",  # shard even this small model
    "checkpoint.every_minutes=null",
)
EVERY = "checkpoint.every_steps=1"
STAGES = ("sft", "reward", "ppo")
PREFERENCES = (
    "stages=[sft,dpo]",
    "dpo.loss=kto",
    "dpo.max_steps=4",
    "dpo.batch_size=16",
    "dpo.dropout=0.1",
    "dpo.eval_every=2",
)
PPO, TRAINER = "rlhf.stages.ppo.train", "rlhf.ppo.trainer:DeepSpeedPPOTrainer"
SAVER, KEEPER = "rlhf.stages.saver", "rlhf.experiment.checkpoints"

# Deaths in the course of a checkpoint, and what a stage survives beside its own work. Each is met by the attempt that the
# one before it left behind.
SAVING = (
    FaultPoint(f"{SAVER}:read_tensors", nth=9, when="returned"),  # in the middle of a file
    FaultPoint(f"{SAVER}:Saver.commit"),
    FaultPoint(f"{KEEPER}:write_json", when="after"),  # whole, but not in its place
    FaultPoint("os:replace", match=".partial')", when="after"),  # in its place
)
RESUMING = (
    FaultPoint(f"{SAVER}:restore_engine", when="after"),
    FaultPoint("rlhf.tracking.tracker:Tracker.resume", when="after"),
)
REMOVING = (FaultPoint("os:unlink", match="rank-0.safetensors", when="after"),)  # an old checkpoint, half removed
LOGGING = (
    FaultPoint("rlhf.tracking.tracker:append", when="after"),
    FaultPoint("rlhf.tracking.tracker:Tracker.status"),
)
ENDING = (
    FaultPoint("rlhf.engine.save:write_tensors", when="after"),
    FaultPoint("os:replace", match="model.partial')", when="after"),
    FaultPoint("rlhf.experiment.stage_directory:StageDirectory.finish"),
)
DONE = {  # the last moments of a stage that is done: its checkpoints are still there, or some of them
    "sft": FaultPoint("rlhf.stages.run:remove_all"),
    "reward": FaultPoint("os:unlink", match=MANIFEST, when="after"),
    "ppo": FaultPoint("rlhf.experiment.stage_directory:StageDirectory.finish", when="after"),
}


def of_training(stage):
    """Deaths around the step and the evaluation of a supervised stage."""
    step, evaluate = f"rlhf.stages.{stage}.train:train_step", f"rlhf.stages.{stage}.train:evaluate"
    return (
        FaultPoint(step),
        FaultPoint(step, when="after", nth=2),
        FaultPoint(evaluate),
        FaultPoint(evaluate, when="after"),
    )


FAULTS = {
    "sft": (
        *LOGGING, *of_training("sft"), *REMOVING,
        FaultPoint("rlhf.stages.sft.train:save_model", when="after"), DONE["sft"],
    ),
    "reward": (
        *of_training("reward"), FaultPoint("rlhf.stages.reward.train:score_moments"),
        FaultPoint("rlhf.stages.reward.train:save_model", when="after"),
        DONE["reward"],
    ),
    "dpo": (
        FaultPoint("rlhf.stages.dpo.train:read_all", when="after"),
        FaultPoint("rlhf.stages.dpo.reference:make_once", when="after"),
        FaultPoint("rlhf.stages.answers:HeldoutAnswers.begin", when="after"),
        FaultPoint("rlhf.stages.dpo.train:train_step", when="after", nth=2),
        FaultPoint("rlhf.stages.answers:compare"),
        FaultPoint("rlhf.stages.dpo.train:save_model", when="after"),
    ),
    "ppo": (
        FaultPoint(f"{TRAINER}.generate_experience"),
        FaultPoint(f"{TRAINER}.generate_experience", when="after"),
        FaultPoint(f"{TRAINER}.train_minibatch", nth=3),
        FaultPoint(f"{TRAINER}.train_rlhf", when="after"),
        *SAVING,
        *RESUMING,
        FaultPoint(f"{PPO}:compare"),
        FaultPoint("rlhf.tracking.tracker:append", nth=3),  # among the samples
        FaultPoint("rlhf.tracking.tracker:Tracker.log", when="after", nth=2),
        FaultPoint(f"{TRAINER}.generate_experience", when="after"),
        *REMOVING,
        FaultPoint(f"{PPO}:save_model"),
        FaultPoint(f"{PPO}:save_model", nth=2, when="after"),
        *ENDING,
        DONE["ppo"],
    ),
}  # fmt: skip
# Every other step is lost with these.
FEWER = {
    "sft": (
        FaultPoint("rlhf.stages.sft.train:train_step", nth=2, when="after"),
        FaultPoint("rlhf.stages.sft.train:train_step", nth=4),
    ),
    "reward": (
        FaultPoint("rlhf.stages.reward.train:train_step", nth=2),
        FaultPoint("rlhf.stages.reward.train:train_step", nth=3, when="after"),
        FaultPoint("rlhf.stages.reward.train:evaluate"),
        FaultPoint("rlhf.stages.reward.train:score_moments"),
    ),
    "ppo": (
        FaultPoint(f"{TRAINER}.train_minibatch", nth=6),
        FaultPoint(f"{TRAINER}.generate_experience", nth=3),
        FaultPoint(f"{TRAINER}.train_rlhf", when="after"),
        FaultPoint(f"{PPO}:save_model", nth=3, when="after"),
    ),
}


def content(directory: Path) -> dict:
    """What an unbroken stage and a broken one must have alike."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {name: value for name, value in line.items() if name != "time" and name.split("/")[0] not in MACHINE_GROUPS}
        for line in lines
    ]
    models = [place for place in directory.iterdir() if place.name.split("-")[0] in ("model", "adapter", "critic", "ema")]
    files = {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for place in models
        for file in place.iterdir()
        if file.name not in ("README.md", "adapter_config.json")  # they name directories, and list a set
    }
    samples = directory / "samples.jsonl"
    return {
        "metrics": metrics,
        "files": files,
        "samples": samples.read_text() if samples.exists() else None,
        "result": json.loads((directory / "result.json").read_text())["metrics"],
    }


def assert_same(expected, found, story="") -> None:
    """The first difference, and how it came to be."""
    for line, other in zip(expected["metrics"], found["metrics"], strict=True):
        assert other == line, story
    assert found == expected, story


class Lab:
    """Runs stages to their end, once, and breaks others of the same configuration."""

    def __init__(self, make_config, root) -> None:
        self.make_config, self.root = make_config, root
        self.servers: dict[int, CrashServer] = {}
        self.bases: dict[tuple[str, ...], Path] = {}
        self.numbers = itertools.count()

    def node(self, stage, changes, root):
        """A stage and its configuration, with another output root."""
        config = self.make_config(*SMALL, *changes)
        config.output_root = str(root)
        return next(node for node in build_graph(config) if node.stage == stage), config

    def attempt(self, spec, config, fault=None, unbroken=False):
        """One run. On two ranks what is left alone runs in processes of another server, in which sets have another order;
        a server costs seconds to start, so one is enough for the quick tests."""
        world = config.hardware.gpus_per_node
        server = int(unbroken and world > 1)
        if server not in self.servers:
            self.servers[server] = CrashServer(hash_seed=server)
        return self.servers[server].run(spec.file, world, fault)

    def base(self, stage, *changes) -> dict:
        """What the stage comes to when nothing breaks it."""
        node, config = self.node(stage, changes, self.root_of(changes))
        if not node.directory.done:
            for parent in build_graph(config):
                if parent.fingerprint in node.parents:
                    self.base(parent.stage, *changes)
            ended = self.attempt(write_spec(node, config), config, unbroken=True)
            assert not any(ended.codes), ended.said
            leave_nothing(node.directory.path)
        return content(node.directory.path)

    def root_of(self, changes) -> Path:
        """Where the unbroken stages of a configuration are; how they are saved does not count."""
        key = tuple(change for change in changes if not change.startswith("checkpoint."))
        return self.bases.setdefault(key, self.root / f"base-{len(self.bases)}")

    def fresh(self, stage, *changes, root=None):
        """The stage and its configuration in an empty directory, with the unbroken stages that it starts from."""
        self.base(stage, *changes)
        root = root or self.root / f"broken-{next(self.numbers)}"
        original, _ = self.node(stage, changes, self.root_of(changes))
        (root / "stages").mkdir(parents=True, exist_ok=True)
        for place in original.directory.path.parent.iterdir():
            if place.name != original.directory.path.name:
                (root / "stages" / place.name).symlink_to(place)
        node, config = self.node(stage, changes, root)
        assert node.fingerprint == original.fingerprint
        return node, config

    def run(self, node, config, fault=None):
        """One attempt, which must end as `fault` says."""
        before = [place.name for place in checkpoint_dirs(node.directory.path)]
        ended = self.attempt(write_spec(node, config), config, fault)
        told = [line for line in ended.said.splitlines() if line.startswith("resumed ")]
        if before and told:
            assert told == [f"resumed {node.stage} at {before[0]}"]
        return ended

    def survive(self, node, config, faults, expected):
        """Die again and again, and come to the same end."""
        story = []
        for fault in faults:
            ended = self.run(node, config, fault)
            found = checkpoint_dirs(node.directory.path)
            story.append(f"{fault}: {ended.codes}, {[place.name for place in found]}")
            if not fault.delay:
                assert ended.codes[fault.rank] == -9, "\n".join([*story, ended.said])
            if node.directory.done:
                assert fault.delay or fault is faults[-1], story
                break
            for place in found[: config.checkpoint.keep]:
                manifest = read_manifest(place)
                assert integrity_error(place, list(manifest.files), manifest) is None, story
        if not node.directory.done:
            ended = self.run(node, config)
            assert not any(ended.codes), ended.said
            leave_nothing(node.directory.path)
        assert_same(expected, content(node.directory.path), "\n".join(story))

    def broken(self, stage, faults, *changes):
        """All of it."""
        node, config = self.fresh(stage, *changes)
        self.survive(node, config, faults, self.base(stage, *changes))

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


def leave_nothing(directory) -> None:
    """A stage that is done has nothing half-written, and no checkpoints."""
    assert not list(directory.rglob("*.partial")) and not (directory / "checkpoints").exists()


@pytest.fixture(scope="module")
def lab(make_config, tmp_path_factory):
    lab = Lab(make_config, tmp_path_factory.mktemp("resume"))
    yield lab
    lab.close()


# Killed.


@pytest.mark.parametrize("stage", mark_slow(STAGES, ("ppo",)))  # of the others the boundaries of their loop are in FEWER
def test_killed_at_every_boundary(lab, stage):
    lab.broken(stage, FAULTS[stage], EVERY)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_with_a_checkpoint_at_every_other_step(lab, stage):
    lab.broken(stage, FEWER[stage], "checkpoint.every_steps=2")


@pytest.mark.slow
def test_the_samplers_logprobs_are_the_same_after_a_death(lab):
    """A resumed run's sampler has not answered the held-out prompts, of which there are more than of a rollout."""
    options = "ppo.old_logprobs=sampler", "ppo.dropout=0", "ppo.ratio_tolerance=null", "data.demo.heldout_prompts=24"
    lab.broken("ppo", FEWER["ppo"], "checkpoint.every_steps=2", *options, "ppo.eval_every=1")


def test_preference_optimisation_killed_at_every_boundary(lab):
    lab.broken("dpo", FAULTS["dpo"], EVERY, *PREFERENCES)


def test_killed_with_a_checkpoint_at_every_boundary_by_the_clock(lab):
    """Then rollouts that no update has seen are saved as well."""
    faults = (
        FaultPoint("os:replace", match="rollout.partial')"),
        FaultPoint(f"{TRAINER}.train_minibatch", nth=2),  # after step-000000-rollout
        FaultPoint(f"{TRAINER}.train_rlhf", nth=2),
        FaultPoint(f"{TRAINER}.train_rlhf", when="after"),  # after step-000001-rollout
        FaultPoint("os:replace", match="rollout.partial')", when="after"),  # the one resumed is kept as it is
        FaultPoint(f"{TRAINER}.train_rlhf"),
    )
    lab.broken("ppo", faults, "checkpoint.every_minutes=1.0e-9", "checkpoint.keep=1")


def test_killed_before_the_first_checkpoint_a_stage_begins_anew(lab):
    lab.broken("sft", (FaultPoint("rlhf.stages.sft.train:train_step", nth=4, when="after"),))


def test_a_line_that_was_cut_off_is_removed(lab):
    node, config = lab.fresh("ppo", EVERY)
    lab.run(node, config, FaultPoint(f"{TRAINER}.train_rlhf", nth=3))
    for name in ("metrics", "samples"):
        with (node.directory.path / f"{name}.jsonl").open("a") as stream:
            stream.write('{"step": 3, "ti')
    lab.run(node, config, FaultPoint(f"{TRAINER}.train_rlhf", nth=1))
    node.directory.samples_file.unlink()
    os.truncate(node.directory.metrics_file, 100)
    lab.survive(node, config, (), lab.base("ppo", EVERY))


SPOILED = {
    "sft": "rlhf.stages.sft.train:loss_of",
    "reward": "rlhf.stages.reward.comparisons:pair_loss",
    "ppo": "rlhf.ppo.trainer:DeepSpeedPPOTrainer.score_responses",
}


@pytest.mark.parametrize("stage", mark_slow(STAGES, ("sft", "ppo")))
def test_steps_in_a_row_that_are_not_finite_are_counted_over_attempts(lab, stage):
    node, config = lab.fresh(stage, EVERY)
    getattr(config, stage).max_nonfinite = 2
    for _ in range(2):
        ended = lab.run(node, config, FaultPoint(SPOILED[stage], when="nan"))
        assert ended.codes == [1] and "is not finite for 2 steps in a row" in ended.said
        assert [place.name for place in checkpoint_dirs(node.directory.path)] == ["step-000001"]


OPTIONS = {
    "bf16": ("precision=bf16",),
    "fp16": ("precision=fp16",),
    "adapters": ("lora=r8", "lora.dropout=0.1", "ppo.ptx_coef=2.0"),
    "adapters and weights, another critic": ("lora=r8", "lora.only=false", "ppo.critic=actor"),
}


def of_models(lab, *changes):
    """PPO of the models that the unbroken stages left."""
    for stage in ("sft", "reward"):
        lab.base(stage)
    actor, reward = (lab.node(stage, (), lab.root_of(()))[0].directory.path for stage in ("sft", "reward"))
    small = ("ppo.max_steps=2", "ppo.rollout_batch_size=8", "ppo.batch_size=4", "data.demo.heldout_prompts=2")
    return (*changes, *small, EVERY, f"ppo.actor={actor}", f"ppo.reward={reward}")


@pytest.mark.parametrize(
    "name",
    [
        "adapters",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("bf16", "adapters and weights, another critic")),
        fp16_case("fp16", marks=[pytest.mark.slow]),
    ],
)
def test_killed_ppo_of_another_kind(lab, name):
    lab.broken("ppo", (FaultPoint(f"{TRAINER}.train_minibatch", nth=6),), *of_models(lab, *OPTIONS[name]))


# Functions, which run in processes of their own, and statistics that grow with every rollout.
REWARDS = (
    "rewards.mine.kind=function", "rewards.mine.function=length", "rewards.mine.normalize=running",
    "rewards.model.normalize=running", "rewards.model.weight=0.5",
)  # fmt: skip


@pytest.mark.slow
def test_killed_ppo_with_running_statistics_of_rewards(lab):
    faults = (
        FaultPoint(f"{TRAINER}.generate_experience", nth=2, when="after"),
        FaultPoint(f"{TRAINER}.train_minibatch", nth=4),
        FaultPoint(f"{PPO}:save_model"),
    )
    lab.broken("ppo", faults, EVERY, *REWARDS)


COARSE = Path(__file__).parents[1] / "support" / "coarse_reward.py"
# A rollout of several draws, each of which is saved.
DRAWS = (
    "algorithm=dapo", "rollout.samples_per_prompt=2", "ppo.max_draws=100", "checkpoint.every_minutes=1e-6",
    "~rewards.model", "rewards.coarse.kind=function", f"rewards.coarse.function={COARSE}:score",
)  # fmt: skip
# What each keeps in a checkpoint beside models and rollouts: nothing, groups, a steered coefficient, a reference.
ALGORITHMS = {
    "grpo": ("algorithm=grpo", "ppo.kl_controller=adaptive"),
    "gspo": ("algorithm=gspo",),
    "remax": ("algorithm=remax",),
    "raft": ("algorithm=raft", "ppo.best_share=0.25"),
    "online_dpo": ("algorithm=online_dpo", "ppo.batch_size=8"),
    "refreshed reference": ("ppo.reference_refresh=1", "ppo.critic_warmup=1", "ppo.early_stop_kl=1e-9"),
    "steered entropy": ("algorithm=rloo", "ppo.entropy_target=9.0", "ppo.entropy_step=0.1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_killed_ppo_of_another_algorithm(lab, name):
    deaths = FaultPoint(f"{TRAINER}.train_rlhf", when="after"), FaultPoint(f"{TRAINER}.train_minibatch")
    lab.broken("ppo", deaths, *of_models(lab, *ALGORITHMS[name]), "ppo.max_steps=3")


@pytest.mark.slow
def test_killed_in_a_rollout_that_is_not_full(lab):
    changes = [change for change in of_models(lab, *DRAWS) if not change.startswith(("ppo.reward=", "checkpoint.every_s"))]
    deaths = (FaultPoint(f"{TRAINER}.draw_samples", nth=2), FaultPoint(f"{TRAINER}.draw_samples", nth=3))
    lab.broken("ppo", deaths, *changes)


# Two ranks.

TWO = "hardware.gpus_per_node=2"


def on_both(stage):
    """Deaths of either rank."""
    if stage != "ppo":
        step, evaluate = f"rlhf.stages.{stage}.train:train_step", f"rlhf.stages.{stage}.train:evaluate"
        saving = replace(SAVING[0], nth=2, rank=1)
        return (
            FaultPoint(step, nth=2, rank=1),
            FaultPoint(evaluate),
            saving,
            FaultPoint(f"rlhf.stages.{stage}.train:save_model"),
        )
    return (
        FaultPoint(f"{TRAINER}.generate_experience", when="after", rank=1),
        FaultPoint(f"{TRAINER}.train_minibatch", nth=3, rank=0),
        replace(SAVING[0], nth=2, rank=1),
        FaultPoint(f"{SAVER}:write_tensors", when="after", rank=1),
        *SAVING[1:],
        FaultPoint(f"{TRAINER}.train_rlhf", when="after", rank=1),
        FaultPoint("rlhf.tracking.tracker:append", nth=3),
        FaultPoint(f"{PPO}:save_model", nth=2, rank=1),
        FaultPoint("rlhf.experiment.stage_directory:StageDirectory.finish"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("zero", ["0", "2", "3"])
def test_two_ranks_are_killed_at_every_boundary(lab, zero, stage):
    lab.broken(stage, on_both(stage), EVERY, TWO, f"zero='{zero}'")


PLUS = ("zero.zero_hpz_partition_size=2", "zero.zero_quantized_weights=false", "zero.zero_quantized_gradients=false")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("zero=plusplus", *PLUS),
        ("zero='3'", "lora=r8"),
        ("zero='1'", "zero@critic_zero='3'", "critic_zero.stage3_param_persistence_threshold=10000"),
        ("zero=2-offload", "precision=bf16"),
    ],
    ids=lambda changes: ",".join(changes[:2]),
)
def test_two_ranks_of_another_kind_are_killed(lab, changes):
    faults = (FaultPoint(f"{TRAINER}.train_minibatch", nth=6, rank=1), FaultPoint(f"{PPO}:save_model", nth=2))
    lab.broken("ppo", faults, *of_models(lab, TWO, *changes))


@pytest.mark.slow
def test_a_damaged_file_of_another_rank_is_noticed(lab):
    changes = (EVERY, TWO, "zero='3'")
    node, config = lab.fresh("sft", *changes)
    lab.run(node, config, FaultPoint("rlhf.stages.sft.train:train_step", nth=4))
    place = checkpoint_dirs(node.directory.path)[0]
    flip(place / "rank-1.safetensors")
    ended = lab.attempt(write_spec(node, config), config)
    assert f"{place} is damaged (rank-1.safetensors has changed)" in ended.said
    assert_same(lab.base("sft", *changes), content(node.directory.path))


@pytest.mark.slow
def test_all_ranks_hear_of_a_disk_that_is_full_for_one(lab):
    changes = (EVERY, TWO, "zero='2'")
    full = FaultPoint(f"{SAVER}:file_digest", nth=2, rank=1, signal=0)
    node, config = lab.fresh("sft", *changes)
    ended = lab.run(node, config, full)
    assert ended.codes == [0, 0] and "step-000002 could not be saved: No space left on device" in ended.said
    assert_same(lab.base("sft", *changes), content(node.directory.path))
    node, config = lab.fresh("sft", *changes, "checkpoint.on_error=stop")
    ended = lab.run(node, config, full)
    assert ended.codes == [1, 1] and all("checkpoint.on_error=stop" in output for output in ended.outputs)
    lab.survive(node, config, (), lab.base("sft", *changes))


@pytest.mark.slow
def test_both_ranks_save_when_one_is_asked_to_stop(lab):
    changes = (EVERY, TWO, "zero='2'")
    node, config = lab.fresh("ppo", *changes)
    ended = lab.run(node, config, FaultPoint(f"{TRAINER}.generate_experience", nth=2, rank=1, signal=signal.SIGTERM))
    assert ended.codes == [EXIT_CHECKPOINTED, EXIT_CHECKPOINTED]
    assert checkpoint_dirs(node.directory.path)[0].name == "step-000001-rollout"
    lab.survive(node, config, (), lab.base("ppo", *changes))


# Killed at random.


def at_random(seed, seconds, ranks, times=9):
    """Deaths of a rank, or of all, at any time."""
    numbers = random.Random(seed)
    for _ in range(times):
        yield FaultPoint(delay=numbers.uniform(0.2, 1.0) * seconds, rank=numbers.choice(ranks))


def seconds_of(lab, stage, *changes) -> float:
    """How long the stage takes."""
    node, config = lab.fresh(stage, *changes)
    started = time.monotonic()
    assert not any(lab.run(node, config).codes)
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_random(lab, stage, seed):
    changes = (EVERY,) if seed else ("checkpoint.every_minutes=1.0e-9",)
    lab.broken(stage, at_random(seed, seconds_of(lab, stage, *changes), [0]), *changes)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "zero"), [("sft", "3"), ("ppo", "3"), ("ppo", "0")])
def test_two_ranks_are_killed_at_random(lab, stage, zero):
    changes = (EVERY, TWO, f"zero='{zero}'")
    lab.broken(stage, at_random(7, seconds_of(lab, stage, *changes), [0, 1, None], times=6), *changes)


# Asked to stop.


def stopped(lab, stage, at, name, *changes, **details):
    """Ask a stage to stop during a function, and look at what it leaves."""
    node, config = lab.fresh(stage, *changes)
    ended = lab.run(node, config, FaultPoint(at, signal=signal.SIGTERM, **details))
    assert ended.codes == [EXIT_CHECKPOINTED], ended.said
    assert checkpoint_dirs(node.directory.path)[0].name == name
    status = node.directory.status()
    assert status["state"] == "stopped" and status["reason"] == f"saved as {name}"
    return node, config


@pytest.mark.parametrize(("stage", "steps"), [("sft", 2), ("reward", 4)])
def test_asked_to_stop_in_a_step(lab, stage, steps):
    node, config = stopped(lab, stage, f"rlhf.stages.{stage}.train:train_step", f"step-{steps:06}", nth=steps)
    lab.survive(node, config, (), lab.base(stage))


def test_asked_to_stop_in_the_updates_and_in_a_rollout(lab):
    """The updates are ended; the rollout is kept, and not sampled again."""
    from safetensors import safe_open

    node, config = stopped(lab, "ppo", f"{TRAINER}.train_rlhf", "step-000001")
    ended = lab.run(node, config, FaultPoint(f"{TRAINER}.generate_experience", signal=signal.SIGTERM))
    assert ended.codes == [EXIT_CHECKPOINTED] and checkpoint_dirs(node.directory.path)[0].name == "step-000001-rollout"
    with safe_open(checkpoint_dirs(node.directory.path)[0] / "rank-0.safetensors", framework="np") as file:
        assert file.get_slice("stage/experience.responses").get_shape() == [16, 8]
    # What is left to be sampled is the third rollout.
    assert lab.run(node, config, FaultPoint(f"{TRAINER}.generate_experience", nth=2)).codes == [0]
    assert_same(lab.base("ppo"), content(node.directory.path))


def test_asked_to_stop_before_the_first_step_and_again_at_once(lab):
    node, config = stopped(lab, "ppo", "rlhf.ppo.evaluate:Evaluation.answers", "step-000000-rollout")
    ended = lab.run(node, config, FaultPoint(f"{SAVER}:Saver.load", signal=signal.SIGTERM))
    assert ended.codes == [EXIT_CHECKPOINTED] and [place.name for place in checkpoint_dirs(node.directory.path)] == [
        "step-000000-rollout"
    ]
    lab.survive(node, config, (), lab.base("ppo"))


def test_asked_to_stop_after_the_last_step_a_stage_ends(lab):
    node, config = lab.fresh("sft")
    ended = lab.run(node, config, FaultPoint("rlhf.stages.sft.train:save_model", signal=signal.SIGTERM))
    assert ended.codes == [0] and node.directory.done


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_exits_with_85(lab, tmp_path):
    node, config = lab.node("sft", ("sft.max_steps=100000", "sft.epochs=100000"), tmp_path)
    spec = write_spec(node, config).file
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlhf.launch.worker", str(spec)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as worker:
        deadline = time.monotonic() + 60
        while not node.directory.metrics_file.exists() and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.terminate()
        _, errors = worker.communicate(timeout=60)
    assert worker.returncode == EXIT_CHECKPOINTED, errors
    (place,) = checkpoint_dirs(node.directory.path)
    assert len(node.directory.metrics_file.read_text().splitlines()) == read_manifest(place).step > 0


# Damaged.


@pytest.fixture(scope="module")
def two_checkpoints(lab):
    """A stage that was killed with two checkpoints."""
    node, config = lab.fresh("sft", EVERY)
    lab.run(node, config, FaultPoint("rlhf.stages.sft.train:train_step", nth=4))
    assert [place.name for place in checkpoint_dirs(node.directory.path)] == ["step-000003", "step-000002"]
    return node.directory.path


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def edit(file: Path) -> None:
    file.write_text(file.read_text().replace('"step": 3', '"step": 2'))


WEIGHTS = "rank-0.safetensors"
DAMAGES = {
    "a bit": (lambda place: flip(place / WEIGHTS), f"{WEIGHTS} has changed"),
    "cut off": (lambda place: cut(place / WEIGHTS), "bytes instead of"),
    "gone": (lambda place: (place / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "edited": (lambda place: edit(place / MANIFEST), f"{MANIFEST} has changed"),
    "cut-off manifest": (lambda place: cut(place / MANIFEST), f"{MANIFEST} cannot be read"),
    "empty manifest": (lambda place: os.truncate(place / MANIFEST, 0), f"{MANIFEST} cannot be read"),
}


def copied(lab, directory):
    """A copy of such a stage, under another root."""
    node, config = lab.fresh("sft", EVERY)
    shutil.copytree(directory, node.directory.path)
    return node, config


@pytest.mark.parametrize("kind", mark_slow(DAMAGES, ("a bit", "gone", "cut-off manifest")))
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(lab, two_checkpoints, kind):
    node, config = copied(lab, two_checkpoints)
    newest, before = checkpoint_dirs(node.directory.path)
    harm, problem = DAMAGES[kind]
    harm(newest)
    ended = lab.attempt(write_spec(node, config), config)
    assert ended.codes == [0]
    (told,) = [line for line in ended.said.splitlines() if "damaged" in line]
    assert told.startswith(f"{newest} is damaged (") and problem in told
    assert f"resumed sft at {before.name}" in ended.said
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


LOSSES = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: os.truncate(file, 0),
    "shortened": lambda file: os.truncate(file, file.stat().st_size // 2),
    "another byte": flip,
    "longer": lambda file: file.write_text(file.read_text() * 2),
}


@pytest.mark.parametrize("kind", mark_slow(LOSSES, ("gone", "shortened")))
def test_what_became_of_the_metrics_of_a_killed_stage_does_not_matter(lab, two_checkpoints, kind):
    """They are in the checkpoint too."""
    node, config = copied(lab, two_checkpoints)
    LOSSES[kind](node.directory.metrics_file)
    ended = lab.attempt(write_spec(node, config), config)
    assert ended.codes == [0] and "resumed sft" in ended.said
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


def test_metrics_that_are_damaged_in_a_checkpoint_are_those_of_the_one_before(lab, two_checkpoints):
    node, config = copied(lab, two_checkpoints)
    newest, before = checkpoint_dirs(node.directory.path)
    cut(newest / "metrics.jsonl")
    node.directory.metrics_file.unlink()
    ended = lab.attempt(write_spec(node, config), config)
    assert f"{newest} is damaged (metrics.jsonl has " in ended.said and f"resumed sft at {before.name}" in ended.said
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


def test_if_all_checkpoints_are_damaged_a_stage_begins_anew(lab, two_checkpoints):
    node, config = copied(lab, two_checkpoints)
    newest, before = checkpoint_dirs(node.directory.path)
    flip(newest / WEIGHTS)
    cut(before / MANIFEST)
    ended = lab.attempt(write_spec(node, config), config)
    assert ended.codes == [0] and "resumed" not in ended.said
    assert f"{newest} is damaged" in ended.said and f"{before} is damaged" in ended.said
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


# No room.


def size_of(directory: Path) -> int:
    """In bytes, as a file system counts it that gives room by the page."""
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in directory.rglob("*") if file.is_file())


def without_room(lab, small_disk, size, *changes):
    """A stage on a disk that is too small."""
    lab.base("sft", EVERY)
    return lab.fresh("sft", EVERY, *changes, root=small_disk(size))


def test_a_full_disk_keeps_the_checkpoint_before(lab, two_checkpoints, small_disk):
    one, model = (
        size_of(checkpoint_dirs(two_checkpoints)[0]),
        size_of(lab.node("sft", (), lab.root_of(()))[0].directory.model),
    )
    node, config = without_room(lab, small_disk, 2 * one + model + 200_000)
    ended = lab.run(node, config, FaultPoint("rlhf.stages.sft.train:save_model"))
    assert ended.codes == [-9]
    told = [line for line in ended.said.splitlines() if "could not be saved" in line]
    assert [line.split()[0] for line in told] == ["step-000003", "step-000004"]
    assert all(f"No space left on device: {node.directory.path} (0." in line for line in told)
    assert all("MiB are free there); the checkpoint before it is kept" in line for line in told)
    assert [place.name for place in checkpoint_dirs(node.directory.path)] == ["step-000002", "step-000001"]
    assert {place.name for place in (node.directory.path / "checkpoints").iterdir()} == {"step-000001", "step-000002"}
    ended = lab.run(node, config)
    assert ended.codes == [0] and "resumed sft at step-000002" in ended.said and "could not be saved" in ended.said
    leave_nothing(node.directory.path)
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


def test_a_full_disk_stops_a_stage_if_it_shall(lab, two_checkpoints, small_disk):
    one = size_of(checkpoint_dirs(two_checkpoints)[0])
    node, config = without_room(lab, small_disk, 2 * one + 200_000, "checkpoint.on_error=stop")
    ended = lab.run(node, config)
    assert ended.codes == [1] and "RuntimeError: step-000003 could not be saved: No space left on device" in ended.said
    noted = json.loads((node.directory.path / "logs" / "rank-0.error").read_text())["error"]
    assert noted.endswith("(checkpoint.on_error=stop)")
    assert {place.name for place in (node.directory.path / "checkpoints").iterdir()} == {"step-000001", "step-000002"}
    small_disk(10 * one)
    ended = lab.run(node, config)
    assert ended.codes == [0] and "resumed sft at step-000002" in ended.said
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


def test_a_full_disk_at_the_end_leaves_no_model(lab, two_checkpoints, small_disk):
    one = size_of(checkpoint_dirs(two_checkpoints)[0])
    node, config = without_room(lab, small_disk, 2 * one + 200_000)
    ended = lab.run(node, config)
    assert ended.codes == [1] and "No space left on device" in ended.said
    assert not node.directory.done and not node.directory.model.exists() and not list(node.directory.path.glob("*.partial"))
    noted = json.loads((node.directory.path / "logs" / "rank-0.error").read_text())["error"]
    assert re.match(rf"OSError: No space left on device: {node.directory.path} \(0\.\d MiB are free there\)$", noted)
    small_disk(10 * one)
    ended = lab.run(node, config)
    assert ended.codes == [0] and "resumed sft at step-000002" in ended.said
    leave_nothing(node.directory.path)
    assert_same(lab.base("sft", EVERY), content(node.directory.path))


# Other ranks.


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("hardware.gpus_per_node=2", r"hardware\.gpus_per_node"),
        ("hardware.nodes=2", r"hardware\.nodes"),
        ("zero='2'", r"zero\.stage"),
        ("zero.reduce_bucket_size=1000", r"zero\.reduce_bucket_size"),
    ],
)
def test_other_devices_are_refused(lab, two_checkpoints, change, key):
    copied(lab, two_checkpoints)
    root = lab.root / f"broken-{next(lab.numbers) - 1}"
    node, config = lab.node("sft", (EVERY, change), root)
    before = {file: file.read_bytes() for file in node.directory.path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=rf"^{key}=.*was saved with .*; resume with {key}=.*checkpoint\.resume=false"):
        write_spec(node, config)
    assert before == {file: file.read_bytes() for file in node.directory.path.rglob("*") if file.is_file()}


def test_a_stage_is_trained_anew_if_it_shall_not_be_resumed(lab, two_checkpoints):
    copied(lab, two_checkpoints)
    root = lab.root / f"broken-{next(lab.numbers) - 1}"
    node, config = lab.node("sft", ("zero='2'", "checkpoint.resume=false"), root)
    spec = write_spec(node, config)
    assert not (node.directory.path / "checkpoints").exists() and not node.directory.metrics_file.exists()
    ended = lab.attempt(spec, config)
    assert ended.codes == [0] and "resumed" not in ended.said


# The saver alone, without engines.


@pytest.fixture
def make_saver(make_config, tmp_path):
    """`make_saver(keep=3)`: a new Saver of the same stage, as after a new start, with these keys of `checkpoint`."""
    from rlhf.stages.context import Context
    from rlhf.stages.saver import Saver

    def make(**settings):
        config = make_config()
        config.output_root = str(tmp_path)
        config.checkpoint = replace(config.checkpoint, **{"every_minutes": None, **settings})
        node = build_graph(config)[0]
        tracker = SimpleNamespace(
            stop_reason=None,
            save=lambda directory: [],
            seconds=1.5,
            resume=lambda directory, step, *more: resumed.append((directory, step)),
        )
        return Saver(Context(node.directory, tracker, SimpleNamespace(config=config, stage="sft", code="0")), {})

    resumed = []
    make.resumed = resumed
    return make


def saved(saver) -> list[str]:
    """What is there, the newest first."""
    return [place.name for place in checkpoint_dirs(saver.directory)]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(make_saver, keep):
    saver = make_saver(every_steps=1, keep=keep)
    for step in range(1, 6):
        saver.boundary(step, None, dict)
    assert saved(saver) == ["step-000005", "step-000004", "step-000003"][:keep]
    assert len(list((saver.directory / "checkpoints").iterdir())) == keep


def test_an_alarm_stops_a_stage_once_it_is_saved(make_saver):
    from rlhf.experiment.stopping import Stopped

    saver = make_saver()
    saver.context.tracker.stop_reason = "alarm unended at step 3"
    with pytest.raises(Stopped, match=r"saved as step-000003; alarm unended at step 3 \(health.stop\)"):
        saver.boundary(3, None, dict)
    assert saved(saver) == ["step-000003"]


def test_what_was_saved_is_resumed(make_saver):
    import torch

    numbers = {"final": {"eval/loss": 0.1 + 0.2, "worst": float("inf")}, "row": 3, "before": [{"text": "é\n"}]}
    tensors = {"average.0": torch.randn(3, 2, dtype=torch.bfloat16), "ids": torch.arange(4), "mask": torch.tensor([True])}
    make_saver(every_steps=1).boundary(7, None, lambda: numbers, lambda: tensors)
    progress = make_saver().resume()
    (place,) = checkpoint_dirs(make_saver().directory)
    assert progress.step == 7 and make_saver.resumed == [(place, 7)]
    assert numbers.items() <= progress.numbers.items()
    assert progress.tensors.keys() == tensors.keys()
    assert all(torch.equal(progress.tensors[name], tensor) for name, tensor in tensors.items())


def test_where_there_is_nothing_a_stage_begins(make_saver):
    progress = make_saver().resume()
    assert (progress.step, progress.numbers, progress.tensors) == (0, {}, {}) and make_saver.resumed == [(None, 0)]


def test_a_checkpoint_is_due_by_the_clock(make_saver, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("rlhf.stages.saver.time", SimpleNamespace(monotonic=lambda: now))
    saver = make_saver(every_minutes=2.0)
    found = []
    for step, seconds in ((1, 119), (2, 2), (3, 119), (4, 1), (5, 120)):
        now += seconds
        saver.boundary(step, "rollout" if step == 4 else None, dict)
        found.append(saved(saver)[:1])
    second, fourth = ["step-000002"], ["step-000004-rollout"]
    assert found == [[], second, second, fourth, ["step-000005"]]


def test_without_an_interval_nothing_is_saved(make_saver):
    saver = make_saver()
    for step in range(1, 4):
        saver.boundary(step, None, dict)
        saver.boundary(step, "rollout", dict)
    assert saved(saver) == []


def test_steps_count_at_their_end_only(make_saver):
    saver = make_saver(every_steps=2, keep=9)
    for step in range(5):
        saver.boundary(step, "rollout", dict)
        saver.boundary(step + 1, None, dict)
    assert saved(saver) == ["step-000004", "step-000002"]


@pytest.mark.parametrize("place", ["write", "commit"])
@pytest.mark.parametrize("on_error", ["go_on", "stop"])
def test_a_checkpoint_that_cannot_be_saved(make_saver, monkeypatch, capsys, place, on_error):
    saver = make_saver(every_steps=1, on_error=on_error)
    saver.boundary(1, None, dict)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"{SAVER}.file_digest" if place == "write" else f"{SAVER}.publish", fail)
        if on_error == "stop":
            with pytest.raises(RuntimeError, match=r"^step-000002 could not be saved: No space .*\.on_error=stop"):
                saver.boundary(2, None, dict)
        else:
            saver.boundary(2, None, dict)
    assert "step-000002 could not be saved: No space left on device" in capsys.readouterr().out
    assert {found.name for found in (saver.directory / "checkpoints").iterdir()} == {"step-000001"}
    assert make_saver().resume().step == 1
    saver.boundary(3, None, dict)
    assert saved(saver) == ["step-000003", "step-000001"]


def test_a_stage_that_cannot_be_saved_when_it_is_asked_to_stop_says_so(make_saver, monkeypatch):
    from rlhf.experiment import stopping

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"{SAVER}.file_digest", fail)
    monkeypatch.setattr(stopping.stop_requested, "is_set", lambda: True)
    with pytest.raises(stopping.Stopped, match="step-000002 could not be saved: No space left on device"):
        make_saver().boundary(2, None, dict)


def test_what_a_killed_attempt_left_half_written_or_half_removed_goes(make_saver):
    saver = make_saver(every_steps=1)
    saver.boundary(2, None, dict)
    left = [saver.directory / "checkpoints" / name for name in (".step-000002-rollout.partial", "step-000001")]
    for place in left:
        place.mkdir()
        (place / WEIGHTS).write_bytes(b"half")
    assert make_saver().resume().step == 2
    assert saved(saver) == ["step-000002"] and not any(place.exists() for place in left)


def test_a_checkpoint_that_cannot_be_read_is_damaged(make_saver, monkeypatch, capsys):
    saver = make_saver(every_steps=1)
    saver.boundary(1, None, dict)
    saver.boundary(2, None, dict)

    def fail(file):
        if "step-000002" in str(file):
            raise OSError(5, "Input/output error")
        return file_digest(file)

    monkeypatch.setattr(f"{KEEPER}.file_digest", fail)
    assert make_saver().resume().step == 1
    assert "step-000002 is damaged ([Errno 5] Input/output error)" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells which files are mapped")
def test_a_checkpoint_that_was_resumed_is_not_held(make_saver):
    """Else its room would not be free when it is removed, as long as the stage runs."""
    import torch

    make_saver(every_steps=1).boundary(1, None, dict, lambda: {"average.0": torch.zeros(5000)})
    progress = make_saver().resume()
    assert progress.tensors["average.0"].shape == (5000,) and "step-000001" not in Path("/proc/self/maps").read_text()
