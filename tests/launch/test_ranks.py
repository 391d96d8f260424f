"""Two ranks at every ZeRO stage do what one rank does."""

import json

import pytest
from ranks import run_specs, specs
from safetensors.torch import load_file

from rlhf.experiment.graph import nodes
from rlhf.track.metrics import MACHINE_GROUPS

pytestmark = pytest.mark.rounding

SMALL = (
    "sft.max_steps=4",
    "reward.max_steps=3",
    "ppo.max_steps=5",
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
MODELS = ("opt-tiny", "gpt2-tiny", "llama-tiny")
PAIRS = [(model, zero) for model in MODELS for zero in ("1", "2", "3")]
PAIRS += [("opt-tiny", zero) for zero in ("2-offload", "3-offload", "plusplus")]
# Policy losses (of whitened advantages) and the biases of keys are near zero by construction, so compared absolutely.
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


def weights(config) -> dict[str, dict]:
    """The weights of every model that the stages left."""
    places = {node.stage: node.directory.model for node in nodes(config)}
    places["critic"] = places["ppo"].with_name("critic")
    return {name: load_file(place / "model.safetensors") for name, place in places.items()}


@pytest.fixture(scope="module")
def one_rank(make_config, tmp_path_factory):
    config = make_config(*SMALL, f"output_root={tmp_path_factory.mktemp('one')}")
    run_specs(specs(config), world=1)
    return config


@pytest.fixture(scope="module")
def two_ranks(make_config, tmp_path_factory):
    configs = {
        (model, zero): make_config(
            *SMALL, f"model={model}", f"output_root={tmp_path_factory.mktemp(f'zero{zero}')}",
            "hardware.gpus_per_node=2", f"zero='{zero}'",
        )
        for model, zero in [*((model, "0") for model in MODELS), *PAIRS]
    }  # fmt: skip
    run_specs([file for config in configs.values() for file in specs(config)], world=2)
    return configs


def compare(expected, found) -> None:
    """Every metric of every step, and every weight."""
    for stage, lines in history(expected).items():
        for line, other in zip(lines, history(found)[stage], strict=True):
            assert other == pytest.approx(line, rel=1e-3, abs=ABSOLUTE), (stage, line["step"])
    before, after, others = weights(expected)["sft"], weights(expected), weights(found)
    for name, tensors in after.items():
        for key, tensor in tensors.items():
            error = (tensor - others[name][key]).norm()
            assert error <= ABSOLUTE * (1 + tensor.norm()), (name, key)
            if name == "ppo":  # nor is the error much of what PPO changed (AdamW magnifies the rounding of small gradients)
                assert error <= ABSOLUTE + 1e-2 * (tensor - before[key]).norm(), (name, key)


def test_two_ranks_give_the_losses_and_rewards_of_one(one_rank, two_ranks):
    assert {stage: len(lines) for stage, lines in history(one_rank).items()} == {"sft": 4, "reward": 3, "ppo": 5}
    compare(one_rank, two_ranks["opt-tiny", "0"])


@pytest.mark.parametrize(("model", "zero"), PAIRS)
def test_a_zero_stage_gives_the_losses_and_weights_of_stage_0(two_ranks, model, zero):
    compare(two_ranks[model, "0"], two_ranks[model, zero])


def test_the_first_mini_batch_reproduces_the_rollout(two_ranks):  # row 24
    for config in two_ranks.values():
        assert all(line["policy/ratio_first"] < 1e-3 for line in history(config)["ppo"])


def test_fingerprints_do_not_depend_on_ranks_or_zero(make_config):
    one, two = make_config(*SMALL), make_config(*SMALL, "hardware.gpus_per_node=2", "zero='3'", "zero@critic_zero='2'")
    assert [n.fingerprint for n in nodes(one)] == [n.fingerprint for n in nodes(two)]
