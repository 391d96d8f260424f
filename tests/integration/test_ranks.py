"""Two ranks at every ZeRO stage do what one rank does."""

import json

import pytest
from safetensors.torch import load_file
from support.command import ROOT
from support.ranks import run_specs, specs
from support.rollout_compare import distances

from rlhf.catalog.metric import MACHINE_GROUPS
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import read_spec
from rlhf.launch.worker import run_rank

pytestmark = pytest.mark.rounding

SMALL = (
    "seed=2",  # of the numbers drawn none lies within 1e-6 of a boundary between tokens, for none of the models
    "sft.max_steps=3",
    "reward.max_steps=2",
    "ppo.max_steps=2",
    "ppo.rollout_batch_size=16",
    "ppo.batch_size=8",
    "ppo.update_epochs=2",
    "ppo.eval_every=null",
    "rollout.max_new_tokens=6",
    "sft.micro_batch_size=4",
    "ppo.micro_batch_size=4",
    "data.demo.demonstrations=300",
    "data.demo.rounds=1",
    "data.demo.heldout_prompts=7",  # ranks cannot share them evenly
    "zero.stage3_param_persistence_threshold=0",  # shard even this small model
)
QUICK = ("opt-tiny", "3")
MORE = [("opt-tiny", zero) for zero in ("0", "1", "2", "2-offload", "3-offload", "plusplus")]
MORE += [(model, zero) for model in ("gpt2-tiny", "llama-tiny") for zero in ("1", "2", "3")]
# Policy losses (of whitened advantages) and the biases of keys are near zero by construction, so compared absolutely.
ABSOLUTE = 1e-4


def history(config) -> dict[str, list[dict[str, float]]]:
    """The metrics of each stage that do not depend on the machine."""
    stages = {}
    for node in build_graph(config):
        lines = [json.loads(line) for line in node.directory.metrics_file.read_text().splitlines()]
        stages[node.stage] = [
            {name: value for name, value in line.items() if name != "time" and name.split("/")[0] not in MACHINE_GROUPS}
            for line in lines
        ]
    return stages


def weights(config) -> dict[str, dict]:
    """The weights of every model that the stages left."""
    places = {node.stage: node.directory.model for node in build_graph(config)}
    places["critic"] = places["ppo"].with_name("critic")
    return {name: load_file(place / "model.safetensors") for name, place in places.items()}


@pytest.fixture(scope="module")
def one_rank(make_config, tmp_path_factory):
    """In this process. Rounding must decide none of its tokens, or two ranks may rightly draw others: it moves boundaries
    between tokens by 1e-7."""
    config = make_config(*SMALL, f"output_root={tmp_path_factory.mktemp('one')}")
    with distances() as apart:
        for file in specs(config):
            run_rank(read_spec(file))
    assert min(apart) > 1e-6, "take another seed, or fewer tokens"
    return config


@pytest.fixture(scope="module")
def run_pairs(make_config, tmp_path_factory):
    """`run_pairs([(model, zero), ...])`: their configurations, whose stages two ranks have run."""

    def run(pairs):
        configs = {
            (model, zero): make_config(
                *SMALL, f"model={model}", f"output_root={tmp_path_factory.mktemp(f'zero{zero}')}",
                "hardware.gpus_per_node=2", f"zero='{zero}'",
            )
            for model, zero in pairs
        }  # fmt: skip
        run_specs([file for config in configs.values() for file in specs(config)], world=2)
        return configs

    return run


@pytest.fixture(scope="module")
def two_ranks(run_pairs):
    return run_pairs([QUICK])


@pytest.fixture(scope="module")
def more(run_pairs):
    return run_pairs([("gpt2-tiny", "0"), ("llama-tiny", "0"), *MORE])


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


def test_two_ranks_give_the_losses_rewards_and_weights_of_one(one_rank, two_ranks):
    assert {stage: len(lines) for stage, lines in history(one_rank).items()} == {"sft": 3, "reward": 2, "ppo": 2}
    compare(one_rank, two_ranks[QUICK])


@pytest.mark.slow
def test_two_ranks_without_sharding_do_too(one_rank, more):
    compare(one_rank, more["opt-tiny", "0"])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "zero"), [QUICK, *(pair for pair in MORE if pair[1] != "0")])
def test_a_zero_stage_gives_the_losses_and_weights_of_stage_0(two_ranks, more, model, zero):
    both = two_ranks | more
    compare(both[model, "0"], both[model, zero])


def test_the_first_mini_batch_reproduces_the_rollout(two_ranks):  # row 24
    assert_ratios_begin_at_one(two_ranks)


@pytest.mark.slow
def test_the_first_mini_batch_of_others_does_too(more):
    assert_ratios_begin_at_one(more)


def assert_ratios_begin_at_one(configs):
    for config in configs.values():
        assert all(line["policy/ratio_first"] < 1e-3 for line in history(config)["ppo"])


@pytest.mark.slow
def test_rewards_are_normalised_over_the_samples_of_all_ranks(make_config, tmp_path):
    rewards = (
        "rewards.mine.kind=function", f"rewards.mine.function={ROOT}/tests/support/coarse_reward.py:score",
        "rewards.mine.normalize=running", "rewards.model.normalize=batch", "rewards.model.clip=1.5",
    )  # fmt: skip
    one = make_config(*SMALL, *rewards, f"output_root={tmp_path / 'one'}")
    two = make_config(*SMALL, *rewards, f"output_root={tmp_path / 'two'}", "hardware.gpus_per_node=2")
    for file in specs(one):
        run_rank(read_spec(file))
    run_specs(specs(two), world=2)
    compare(one, two)
    assert all(
        {"reward/mine", "reward/mine_shaped", "reward/model", "reward/on_spans"} <= set(line)
        for line in history(two)["ppo"]
    )


# Groups lie on one rank, whatever their number: 16 responses, 2 ranks.
ALGORITHMS = {
    "gdpo": ("algorithm=gdpo", "rollout.samples_per_prompt=4", "rewards.a.kind=function", "rewards.a.function=length"),
    "rloo": ("algorithm=rloo", "zero='2'"),
    "dapo": ("algorithm=dapo", "rollout.samples_per_prompt=2", "zero='3'", "ppo.overlong_filter=false"),
    "raft": ("algorithm=raft", "ppo.best_share=0.25"),
    "remax": ("algorithm=remax", "zero='3'"),
    "reinforce_pp_baseline": ("algorithm=reinforce_pp_baseline", "lora=r8"),
    "refreshed reference": ("ppo.reference_refresh=1", "zero='3'"),
    "entropy, dual clip, early stop": (
        "ppo.entropy_coef=0.01",
        "ppo.dual_clip=3",
        "ppo.early_stop_kl=1e-3",
        "ppo.critic_warmup=1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_ranks_give_what_one_gives_with_every_algorithm(one_rank, make_config, tmp_path, name):
    models = [
        f"ppo.{key}={node.directory.path}" for key, node in zip(("actor", "reward"), build_graph(one_rank), strict=False)
    ]
    found = []
    for world in (1, 2):
        own = (
            *SMALL,
            "stage=ppo",
            *models,
            *ALGORITHMS[name],
            f"output_root={tmp_path / str(world)}",
            f"hardware.gpus_per_node={world}",
        )
        config = make_config(*own)
        run_specs(specs(config), world=world)
        (node,) = build_graph(config)
        found.append((history(config)["ppo"], load_file(node.directory.model / "model.safetensors")))
    (lines, before), (others, after) = found
    for line, other in zip(lines, others, strict=True):
        assert other == pytest.approx(line, rel=1e-3, abs=ABSOLUTE), line["step"]
    for key, tensor in before.items():
        assert (tensor - after[key]).norm() <= ABSOLUTE * (1 + tensor.norm()), key


def test_fingerprints_do_not_depend_on_ranks_or_zero(make_config):
    one, two = make_config(*SMALL), make_config(*SMALL, "hardware.gpus_per_node=2", "zero='3'", "zero@critic_zero='2'")
    assert [n.fingerprint for n in build_graph(one)] == [n.fingerprint for n in build_graph(two)]
