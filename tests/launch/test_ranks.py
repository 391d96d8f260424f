"""Two ranks at every ZeRO stage do what one rank does."""

import json

import pytest
from ranks import run_specs, specs

from rlhf.experiment.graph import nodes
from rlhf.track.metrics import MACHINE_GROUPS

SMALL = (
    "sft.max_steps=4",
    "reward.max_steps=3",
    "ppo.max_steps=3",
    "ppo.rollout_batch_size=16",
    "ppo.batch_size=8",
    "ppo.update_epochs=2",
    "ppo.eval_every=null",
    "rollout.max_new_tokens=10",
    "sft.micro_batch_size=4",
    "ppo.micro_batch_size=4",
    "data.demo.demonstrations=300",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=15",  # ranks cannot share them evenly
    "zero.persistence_elements=0",  # shard even this small model
)
# Near zero by construction (whitened advantages), so compared absolutely.
ABSOLUTE = 1e-4


def history(config) -> dict[str, list[dict[str, float]]]:
    """The metrics of each stage that do not depend on the machine."""
    stages = {}
    for node in nodes(config):
        lines = [json.loads(line) for line in node.directory.metrics.read_text().splitlines()]
        stages[node.stage] = [
            {name: value for name, value in line.items() if name != "time" and name.split("/")[0] not in MACHINE_GROUPS}
            for line in lines
        ]
    return stages


@pytest.fixture(scope="module")
def one_rank(make_config, tmp_path_factory):
    config = make_config(*SMALL, f"output_root={tmp_path_factory.mktemp('one')}")
    run_specs(specs(config), world=1)
    return history(config)


@pytest.fixture(scope="module")
def two_ranks(make_config, tmp_path_factory):
    configs = {
        zero: make_config(
            *SMALL, f"output_root={tmp_path_factory.mktemp(f'zero{zero}')}", "hardware.gpus_per_node=2", f"zero='{zero}'"
        )
        for zero in (0, 1, 2, 3)
    }
    run_specs([file for config in configs.values() for file in specs(config)], world=2)
    return {zero: history(config) for zero, config in configs.items()}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_ranks_give_the_losses_and_rewards_of_one(one_rank, two_ranks, zero):
    assert {stage: len(lines) for stage, lines in one_rank.items()} == {"sft": 4, "reward": 3, "ppo": 3}
    for stage, lines in one_rank.items():
        for expected, found in zip(lines, two_ranks[zero][stage], strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=ABSOLUTE), (stage, expected["step"])


def test_the_first_mini_batch_reproduces_the_rollout(two_ranks):  # row 24
    for stages in two_ranks.values():
        assert all(line["policy/ratio_first"] < 1e-3 for line in stages["ppo"])


def test_fingerprints_do_not_depend_on_ranks_or_zero(make_config):
    one, two = make_config(*SMALL), make_config(*SMALL, "hardware.gpus_per_node=2", "zero='3'")
    assert [n.fingerprint for n in nodes(one)] == [n.fingerprint for n in nodes(two)]
