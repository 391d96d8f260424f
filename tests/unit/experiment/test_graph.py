from dataclasses import replace

import pytest

from rlhf.config.errors import ConfigError
from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result


@pytest.fixture
def config(make_config, tmp_path):
    config = make_config()
    config.output_root = str(tmp_path)
    return config


def finish(node):
    """Declare a stage done, as its run would."""
    node.directory.finish(Result(node.stage, node.fingerprint, 1.0, {}))
    return node


def only(config, *stages):
    config.stages = list(stages)
    return build_graph(config)


def test_stages_come_in_the_order_they_run(config, tmp_path):
    sft, reward, ppo = build_graph(config)
    assert [n.stage for n in (sft, reward, ppo)] == ["sft", "reward", "ppo"]
    for node in (sft, reward, ppo):
        assert node.directory.path == tmp_path / "stages" / f"{node.stage}-{node.fingerprint[:12]}"
    assert ppo.inputs == {"actor": str(sft.directory.model), "reward": str(reward.directory.model)}
    assert [n.stage for n in only(config, "ppo", "sft", "reward")] == ["sft", "reward", "ppo"]
    assert [n.stage for n in only(config, "reward")] == ["reward"]


def test_a_benchmark_needs_no_other_stage(config):
    (bench,) = only(config, "bench")
    assert (bench.stage, bench.inputs, bench.parents) == ("bench", {}, ())
    assert bench.directory.path.name == f"bench-{bench.fingerprint[:12]}"


def test_finished_inputs_are_found_by_fingerprint(config):
    sft, reward, ppo = build_graph(config)
    finish(sft), finish(reward)
    (alone,) = only(config, "ppo")
    assert alone == ppo


@pytest.mark.parametrize(
    ("done", "asked", "key", "run"),
    [
        ([], ["ppo"], "ppo.actor", "stage=sft"),
        (["sft"], ["ppo"], "ppo.reward", "stage=reward"),
        (["reward"], ["ppo"], "ppo.actor", "stage=sft"),
        ([], ["sft", "ppo"], "ppo.reward", "stage=reward"),
    ],
)
def test_a_missing_input_says_what_to_run(config, done, asked, key, run):
    planned = {node.stage: node for node in build_graph(config)}
    for stage in done:
        finish(planned[stage])
    with pytest.raises(ConfigError, match=rf"^{key}=null: ") as error:
        only(config, *asked)
    message = str(error.value)
    assert planned[run.removeprefix("stage=")].directory.path.name in message
    for hint in (run, "stage=all", f"{key}=<"):
        assert hint in message.split("; ", 1)[1]


def test_inputs_of_another_configuration_are_not_taken(config):
    for node in build_graph(config)[:2]:
        finish(node)
    config.sft.learning_rate *= 2
    with pytest.raises(ConfigError, match=r"^ppo\.actor=null"):
        only(config, "ppo")


def test_a_sweep_over_ppo_shares_its_inputs(config):
    first = build_graph(config)
    config.ppo.kl_coef *= 2
    second = build_graph(config)
    assert first[:2] == second[:2]
    assert first[2].directory != second[2].directory
    assert first[2].inputs == second[2].inputs


def test_another_input_is_another_ppo_stage(config):
    before = build_graph(config)
    config.reward.learning_rate *= 2
    after = build_graph(config)
    assert [b == a for b, a in zip(before, after, strict=True)] == [True, False, False]


@pytest.mark.parametrize("ending", ["", "/model"])
def test_a_stage_given_by_path_is_the_same_as_one_that_was_found(config, ending):
    sft, reward, found = build_graph(config)
    for node in (finish(sft), finish(reward)):
        node.directory.model.mkdir()
    config.ppo.actor, config.ppo.reward = str(sft.directory.path) + ending, str(reward.directory.path) + ending
    (given,) = only(config, "ppo")
    assert found.parents == (sft.fingerprint, reward.fingerprint) and given.parents == ()
    assert replace(given, parents=found.parents) == found


def test_a_given_actor_is_used_and_decides_the_result(config, tmp_path):
    _, reward, found = build_graph(config)
    finish(reward)
    place = tmp_path / "mine"
    place.mkdir()
    (place / "config.json").write_text("{}")
    config.ppo.actor = str(place)
    (given,) = only(config, "ppo")  # needs no sft stage
    assert given.inputs == {"actor": str(place), "reward": str(reward.directory.model)}
    assert given.fingerprint != found.fingerprint
    (place / "config.json").write_text('{"other": 1}')
    (again,) = only(config, "ppo")
    assert again.fingerprint != given.fingerprint


def test_a_hub_id_is_handed_on_as_it_is(config):
    config.ppo.actor, config.ppo.reward = "facebook/opt-125m", "org/reward-model"
    (node,) = only(config, "ppo")
    assert node.inputs == {"actor": "facebook/opt-125m", "reward": "org/reward-model"}


def test_where_the_critic_starts_decides_the_result_by_what_it_names(config, tmp_path):
    """Of a path, what it holds, not where it is."""
    from_reward = build_graph(config)
    config.ppo.critic = "actor"
    from_actor = build_graph(config)
    assert from_actor[:2] == from_reward[:2]
    assert from_actor[2].fingerprint != from_reward[2].fingerprint
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place, text in zip(places, ("same", "same", "other"), strict=True):
        place.mkdir()
        (place / "config.json").write_text(text)
    planned = []
    for config.ppo.critic in map(str, places):
        planned.append(build_graph(config)[2])
    assert planned[0].fingerprint == planned[1].fingerprint != planned[2].fingerprint
    assert planned[0].fingerprint not in (from_reward[2].fingerprint, from_actor[2].fingerprint)
    assert [node.inputs["critic"] for node in planned] == list(map(str, places))
    assert "critic" not in from_actor[2].inputs
    config.ppo.critic = "org/critic"
    assert build_graph(config)[2].inputs["critic"] == "org/critic"


def test_a_critic_that_starts_from_another_reward_model_is_another_result(config):
    before = build_graph(config)[2]
    config.reward.learning_rate *= 2
    assert build_graph(config)[2].fingerprint != before.fingerprint


def test_a_stage_given_as_the_critic_is_its_model(config):
    _, reward, _ = build_graph(config)
    finish(reward).directory.model.mkdir()
    config.ppo.critic = str(reward.directory.path)
    assert build_graph(config)[2].inputs["critic"] == str(reward.directory.model)


def test_planning_writes_nothing(config, tmp_path):
    build_graph(config)
    assert list(tmp_path.iterdir()) == []
