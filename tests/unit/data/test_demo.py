import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.demo import (
    CLOSINGS,
    DISMISSALS,
    OPENERS,
    REASONS,
    STEPS,
    THINGS,
    agreement,
    demo_dataset,
    gold_reward,
    preference,
)

PROMPT = "How do I clean a lamp?"
WIPE, RINSE = "Wipe the lamp with a soft cloth.", "Rinse the lamp with warm water."
REASON = "This works because dirt wears things out."
WORLD = sorted(
    {step.format(thing=thing) for steps in STEPS.values() for step in steps for thing in THINGS}
    | {*OPENERS, *CLOSINGS, *DISMISSALS, *REASONS.values()}
)


@pytest.fixture
def small(make_config):
    return make_config("data.demo.demonstrations=300", "data.demo.rounds=1").data.demo


def texts(split):
    return [d.response for d in split.demonstrations] + [t for c in split.comparisons for t in (c.chosen, c.rejected)]


def test_there_are_enough_prompts_and_none_is_in_both_splits(demo_data):
    train, heldout = demo_data.train.prompts, demo_data.heldout.prompts
    assert len(train) == len(set(train)) >= 200
    assert len(heldout) == len(set(heldout)) >= 64
    assert not set(train) & set(heldout)
    for split, prompts in ((demo_data.train, train), (demo_data.heldout, heldout)):
        assert {r.prompt for r in [*split.demonstrations, *split.comparisons]} <= set(prompts)


def test_sizes_are_those_of_the_configuration(make_config, demo_data):
    demo = make_config().data.demo
    pairs = demo.answers_per_prompt * (demo.answers_per_prompt - 1) // 2
    assert len(demo_data.train.demonstrations) == demo.demonstrations
    assert len(demo_data.train.comparisons) == len(demo_data.train.prompts) * demo.rounds * pairs


def test_a_seed_gives_the_same_data_again_and_another_seed_other_data(small):
    small.answers_per_prompt = 2
    first, again, other = demo_dataset(small, 5), demo_dataset(small, 5), demo_dataset(small, 6)
    assert (first.train, first.heldout) == (again.train, again.heldout)
    assert first.train.demonstrations != other.train.demonstrations
    assert first.train.comparisons != other.train.comparisons
    assert first.heldout.prompts != other.heldout.prompts


def test_held_out_records_do_not_depend_on_the_amount_of_training_data(small):
    small.answers_per_prompt = 2
    before = demo_dataset(small, 0).heldout
    small.demonstrations, small.rounds = 17, 2
    assert demo_dataset(small, 0).heldout == before


def test_every_sentence_is_one_of_the_world(demo_data):
    sentences = {s.strip() for text in texts(demo_data.train) for s in re.findall(r"[^.!?]+[.!?]", text)}
    assert sentences <= set(WORLD)
    assert len(sentences) > 300
    assert all(re.fullmatch(r"[A-Z][a-z ]*( I [a-z ]+)?[.!]", sentence) for sentence in sentences)
    assert not [thing for thing in THINGS if thing[0] in "aeiou"]  # "a kettle", so no "a umbrella"
    assert all(text == text.strip() and "  " not in text for text in texts(demo_data.train))


def test_answers_vary_in_quality(demo_data):
    rewards = [gold_reward(d.prompt, d.response) for d in demo_data.train.demonstrations]
    assert np.std(rewards) > 0.5
    assert min(rewards) < -0.5
    assert max(rewards) > 2.5


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (f"Of course! {WIPE} {RINSE} {REASON} I hope this helps.", 3.0),  # the ideal answer
        (WIPE, 1.0),
        (f"{WIPE} {RINSE}", 1.5),
        (f"{WIPE} {RINSE} Brush the dust off the lamp.", 1.5),  # a third step earns nothing
        (REASON, 0.5),
        ("Good question.", 0.5),
        ("Let me know how it goes.", 0.5),
        (f"{WIPE} Of course!", 1.0),  # an opener that does not open
        (f"I hope this helps. {WIPE}", 1.0),  # a closing that does not close
        (f"{WIPE} {WIPE}", 1.0 - 0.75),
        (f"{WIPE} {WIPE} {WIPE}", 1.0 - 2 * 0.75),
        ("I do not know.", -1.0),
        (f"That is a silly question. {WIPE} {RINSE}", 0.5),
        ("I do not know. Just buy a new one.", -1.0),
        ("Wipe the kettle with a soft cloth.", -0.5),  # the wrong thing
        ("Keep the lamp in a dry place.", -0.5),  # the wrong task
        ("This works because damp air does harm.", -0.5),  # the wrong reason
        ("Wipe the moon with a soft cloth.", -0.5),  # no thing of this world
        ("blorp zig zag.", -0.5),
        ("blorp zig zag", -1.0),  # and unfinished
        ("wipe the lamp with a soft cloth.", -0.5),  # no sentence starts like this
        (WIPE.removesuffix("."), -1.0),
        (f"{WIPE} Rinse the la", 1.0 - 0.5 - 0.5),
        ("", -0.5),
        ("   ", -0.5),
    ],
)
def test_gold_reward_of_hand_cases(response, reward):
    assert gold_reward(PROMPT, response) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("What is the best way to store a rug?", "Cover the rug with a sheet."),
        ("Can you help me repair my boot?", "Glue the crack in the boot."),
        ("How do I choose a kite?", "Compare the price of each kite."),
    ],
)
def test_gold_reward_reads_every_wording_and_task(prompt, response):
    assert gold_reward(prompt, response) == 1.0
    assert gold_reward(PROMPT, response) == -0.5


@given(st.lists(st.sampled_from(WORLD), min_size=1, max_size=12))
def test_nothing_beats_the_ideal_answer(sentences):
    assert gold_reward(PROMPT, " ".join(sentences)) <= 3.0


@pytest.mark.parametrize("noise", ["!!!", ". . .", "?!"])
def test_punctuation_that_ends_no_sentence_is_not_free(noise):
    """It is no text of this world either, and what costs nothing is what a policy finds."""
    assert gold_reward(PROMPT, noise) <= gold_reward(PROMPT, "")
    assert gold_reward(PROMPT, WIPE + noise) < gold_reward(PROMPT, WIPE)


def test_gold_reward_refuses_other_prompts():
    with pytest.raises(ValueError, match="not a prompt of the demo data"):
        gold_reward("What is the capital of France?", WIPE)


def gaps(comparisons):
    return np.array([gold_reward(c.prompt, c.chosen) - gold_reward(c.prompt, c.rejected) for c in comparisons])


@pytest.mark.parametrize("noise", [0.2, 0.35, 1.0])
def test_labels_are_as_noisy_as_bradley_terry_says(small, noise):
    small.label_noise = noise
    found = gaps(demo_dataset(small, 0).train.comparisons)
    found = found[found != 0]
    expected = 1 / (1 + np.exp(-np.abs(found) / noise))
    deviation = np.sqrt((expected * (1 - expected)).sum()) / len(found)
    assert (found > 0).mean() == pytest.approx(expected.mean(), abs=4 * deviation)
    assert 0.6 < expected.mean() < 0.99


def test_without_noise_the_better_answer_is_always_preferred(small):
    small.label_noise = 0.0
    data = demo_dataset(small, 0)
    assert (gaps(data.train.comparisons) >= 0).all()
    ties = (gaps(data.heldout.comparisons) == 0).mean()
    assert 0 < ties < 0.5
    assert data.agreement == pytest.approx(1 - ties / 2)


def test_agreement_is_what_a_perfect_judge_reaches(small):
    """A perfect judge on labels drawn many times, against the formula."""
    data = demo_dataset(small, 0)
    difference, rng = np.abs(gaps(data.heldout.comparisons)), np.random.default_rng(0)
    agreed = rng.random((400, len(difference))) < 1 / (1 + np.exp(-difference / small.label_noise))
    assert data.agreement == pytest.approx(agreed.mean(), abs=0.005)
    assert data.agreement == agreement(data.heldout.comparisons, small.label_noise)


@given(st.floats(-4, 4), st.floats(0, 3))
def test_preferences_of_a_pair_sum_to_one(difference, noise):
    with np.errstate(over="ignore"):
        assert preference(difference, noise) + preference(-difference, noise) == pytest.approx(1.0)


def test_answers_to_one_prompt_differ(demo_data):
    assert all(c.chosen != c.rejected for c in demo_data.train.comparisons)
