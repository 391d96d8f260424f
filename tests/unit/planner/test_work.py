"""How much work a stage is: its steps as it will count them, and operations that bound what it will do."""

import pytest

from rlhf.catalog.stage import Work
from rlhf.cli.prepare import estimate_tasks
from rlhf.data.dataset import Comparison, Demonstration, Split
from rlhf.data.demo import demo_counts
from rlhf.data.records import load_dataset
from rlhf.experiment.graph import build_graph
from rlhf.experiment.sweep import Task
from rlhf.planner.flops import forward_flops, generation_flops, training_flops
from rlhf.planner.plan import plan_stage
from rlhf.planner.work import estimate_work

STAGES = ("sft", "reward", "ppo")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("records", "epochs", "max_steps", "steps"),
    [
        (100, 1, None, 12),  # the last records of a pass that fill no batch are left out
        (100, 3, None, 36),
        (100, 3, 5, 5),
        (100, 3, 500, 36),  # no more than there are
        (None, 3, 7, 7),
        (None, 3, None, None),
        (7, 3, None, 0),
    ],
)
def test_steps_are_batches_of_all_passes_or_as_many_as_are_wanted(make_config, stage, records, epochs, max_steps, steps):
    config = make_config()
    settings = getattr(config, stage)
    settings.epochs, settings.max_steps = epochs, max_steps
    config.sft.batch_size = config.reward.batch_size = config.ppo.rollout_batch_size = config.ppo.batch_size = 8
    found = estimate_work(config, stage, records)
    assert (None if found is None else found.steps) == steps


def test_a_rollout_is_a_step_of_ppo(make_config):
    config = make_config("ppo.rollout_batch_size=32", "ppo.batch_size=8", "ppo.epochs=2", "ppo.max_steps=null")
    assert estimate_work(config, "ppo", 64).steps == 4


@pytest.fixture
def small(make_config):
    """Every stage has one step, on sequences of a length that is easily told."""
    return make_config(
        *(f"{stage}.max_steps=1" for stage in STAGES), "sft.batch_size=2", "reward.batch_size=2",
        "ppo.rollout_batch_size=2", "ppo.batch_size=2", "ppo.update_epochs=3", "data.max_prompt_tokens=5",
        "data.max_response_tokens=4", "rollout.max_new_tokens=3", "reward_model.num_hidden_layers=1",
    )  # fmt: skip


def test_a_step_of_sft(small):
    lengths = [9, 9]
    assert estimate_work(small, "sft", None) == Work(1, training_flops(small.model, lengths, 18))
    small.lora.rank, small.sft.gradient_checkpointing = 2, True
    assert estimate_work(small, "sft", None).flops == training_flops(small.model, lengths, 18, small.lora, True)


def test_a_step_of_the_reward_model_reads_both_answers_of_a_pair(small):
    small.reward.grouped = False
    assert estimate_work(small, "reward", None) == Work(1, training_flops(small.reward_model, [9] * 4, 0))


def test_a_prompt_is_planned_with_all_its_answers(small):
    pair, twelve = (plan_stage(small, "reward", estimate_work(small, "reward", None, answers)) for answers in (2, 12))
    assert twelve.flops == 6 * pair.flops and twelve.answers == 12
    for part in ("compute", "memory"):
        assert twelve.seconds["train"][part] == pytest.approx(6 * pair.seconds["train"][part])


@pytest.mark.parametrize("critic", ["reward", "actor"])
def test_a_step_of_ppo_samples_scores_and_learns(small, critic):
    small.ppo.critic = critic
    critic_model = small.model if critic == "actor" else small.reward_model
    longest = [5 + 3] * 2
    expected = (
        generation_flops(small.model, [5, 5], [3, 3])
        + 2 * forward_flops(small.model, longest, 6)  # the policy and the reference
        + forward_flops(critic_model, longest, 0)
        + forward_flops(small.reward_model, longest, 0)
        + 3 * (training_flops(small.model, longest, 6) + training_flops(critic_model, longest, 0))
    )
    assert estimate_work(small, "ppo", None) == Work(1, expected)


@pytest.mark.parametrize("what", ["step3", "rollout", "score", "train", "stages"])
def test_a_benchmark_is_its_rounds_and_one_that_warms_up(small, what):
    small.bench.what, small.bench.repeats, small.reward.grouped = what, 4, False
    rollout = generation_flops(small.model, [5, 5], [3, 3])
    ppo, once = estimate_work(small, "ppo", None).flops, estimate_work(small, "bench", None)
    updates = 3 * (training_flops(small.model, [8, 8], 6) + training_flops(small.reward_model, [8, 8], 0))
    expected = {
        "step3": (4, 5 * ppo),
        "rollout": (4, 5 * rollout),
        "score": (4, 5 * (ppo - updates)),
        "train": (4, ppo - updates + 5 * updates),
        "stages": (12, 5 * (ppo + estimate_work(small, "sft", None).flops + estimate_work(small, "reward", None).flops)),
    }
    assert once == Work(*expected[what])


def test_a_benchmarks_work_needs_no_records(make_config, monkeypatch):
    monkeypatch.setattr("rlhf.data.check.count_part", lambda config, part: pytest.fail("loaded"))
    (task,) = tasks_of(make_config("stage=bench"))
    assert estimate_tasks([task])[task.key].steps == 5


def test_work_grows_with_steps_and_lengths(make_config):
    config = make_config("sft.max_steps=10")
    ten = estimate_work(config, "sft", None)
    config.sft.max_steps = 20
    assert estimate_work(config, "sft", None).flops == 2 * ten.flops
    config.data.max_prompt_tokens *= 2
    assert estimate_work(config, "sft", None).flops > 2 * ten.flops


def tasks_of(config):
    return [Task(node, config) for node in build_graph(config)]


def test_a_sweeps_work_is_counted_on_its_own_records(make_config):
    configs = [make_config(f"seed={seed}", "data.demo.rounds=1", "data.demo.demonstrations=100") for seed in (1, 2)]
    tasks = [task for config in configs for task in tasks_of(config)]
    found = estimate_tasks(tasks)
    assert set(found) == {task.key for task in tasks}
    steps = configs[0].sft.epochs * (100 // configs[0].sft.batch_size)
    assert [found[task.key].steps for task in tasks if task.node.stage == "sft"] == [steps] * 2


def test_records_that_would_have_to_be_downloaded_are_not(make_config, monkeypatch):
    monkeypatch.setattr("rlhf.data.check.count_part", lambda config, part: pytest.fail("loaded"))
    config = make_config("data=hub", "data.hub.name=org/set", "ppo.max_steps=3")
    found = {task.node.stage: estimate_tasks([task])[task.key] for task in tasks_of(config)}
    assert (found["sft"], found["reward"], found["ppo"].steps) == (None, None, 3)


@pytest.mark.parametrize("grouped", [True, False])
def test_pairs_of_one_prompt_that_are_read_together_are_one_element(make_config, monkeypatch, grouped):
    """As the stage itself counts them: see rlhf/data/encode.py, encode_comparisons."""
    answers = ("good", "fair", "bad")
    pairs = [
        Comparison(f"prompt {prompt}", answers[i], answers[j]) for prompt in range(8) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    split = Split([Demonstration("a", "b")] * 8, pairs, ["a"] * 8)
    monkeypatch.setattr("rlhf.data.check.load_part", lambda config, part: split)
    monkeypatch.setattr("rlhf.data.check.KNOWN", {})
    config = make_config("reward.batch_size=4", "reward.epochs=2")
    config.reward.grouped, config.data.source = grouped, "files"
    (task,) = [task for task in tasks_of(config) if task.node.stage == "reward"]
    found = estimate_tasks([task])[task.key]
    assert found.steps == (2 * 8 // 4 if grouped else 2 * 24 // 4)
    length = config.data.max_prompt_tokens + config.data.max_response_tokens
    rows = 4 * (3 if grouped else 2)  # each answer of a prompt once
    assert found.flops == found.steps * training_flops(config.reward_model, [length] * rows, 0)


@pytest.mark.parametrize("heldout", [1, 60, 359])
def test_the_demos_records_are_counted_without_being_made(make_config, heldout):
    """A sweep over a thousand seeds would make a thousand data sets, only to count each."""
    config = make_config(f"data.demo.heldout_prompts={heldout}", "data.demo.rounds=1", "data.demo.demonstrations=50")
    train = load_dataset(config).train
    counted = demo_counts(config.data.demo)
    found = len(train.demonstrations), len(train.prompts), len(train.comparisons)
    assert (counted.demonstrations, counted.prompts, counted.comparisons) == found
    answers = {}
    for pair in train.comparisons:
        answers.setdefault(pair.prompt, set()).update((pair.chosen, pair.rejected))
    assert counted.answers == max(map(len, answers.values()))


@pytest.mark.slow
def test_the_steps_are_those_that_the_stages_will_do(make_config):
    """On the demo, none of whose records are too long."""
    from support.texts import encode_comparisons, encode_demonstrations

    from rlhf.data.loaders import create_prompt_dataloader, total_steps
    from rlhf.data.templates import build_template
    from rlhf.models.tokenizer import tokenizer_corpus, train_tokenizer

    config = make_config("data.demo.rounds=1", "data.demo.demonstrations=100")
    found = {task.node.stage: estimate_tasks([task])[task.key].steps for task in tasks_of(config)}
    data = load_dataset(config)
    tokenizer = train_tokenizer(tokenizer_corpus(config, data), config.data.tokenizer_vocab_size)
    records = {
        "sft": encode_demonstrations(data.train.demonstrations, build_template(config.data, tokenizer)),
        "reward": encode_comparisons(data.train.comparisons, build_template(config.data, tokenizer), config.reward.grouped),
    }
    steps = {"ppo": len(create_prompt_dataloader(config, tokenizer))}
    for stage, found_records in records.items():
        settings = getattr(config, stage)
        steps[stage] = total_steps(len(found_records), settings.batch_size, settings.epochs, settings.max_steps, "")
    assert found == steps
