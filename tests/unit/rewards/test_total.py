"""The weighted sum of rewards: weights, cuts, normalisation, where each applies, and its state."""

import math

import pytest
import torch

from rlhf.config.rewards import DEFAULTS
from rlhf.config.schema import RewardTerm
from rlhf.config.sections import with_rewards
from rlhf.rewards import total as total_module
from rlhf.rewards.sample import Sample, SpannedScore
from rlhf.rewards.total import Moments, RewardTotal

CPU = torch.device("cpu")


class Known:
    """A reward that reads its score from the response."""

    def __init__(self, key, term):
        self.samples = []

    def ask(self, samples):
        self.samples = samples

    def answer(self):
        return [read(s.response) for s in self.samples]

    def close(self):
        pass


def read(text):
    """`none`, a score, or `score end:value ...` with spans, whose values are part of the score."""
    if text == "none":
        return None
    score, *spans = text.split()
    return SpannedScore(float(score), [(int(end), float(value)) for end, value in (span.split(":") for span in spans)])


@pytest.fixture
def build(make_config, monkeypatch):
    """Makes the sum of rewards, of which `model` reads the token that is the sequence; `gold` names one."""
    monkeypatch.setattr(total_module, "build_text_reward", Known)

    def make(gold=None, algorithm="ppo", **terms):
        made = {name: RewardTerm(**(DEFAULTS | keys)) for name, keys in terms.items()}
        config = with_rewards(make_config(f"algorithm={algorithm}", "rollout.samples_per_prompt=2"), made)
        config.gold = gold
        models = {name: [lambda ids, *_: ids[:, 0].float()] for name, term in made.items() if term.kind == "model"}
        return RewardTotal(config, models, CPU)

    return make


def score(rewards, by_model, texts, records=None):
    samples = [Sample("?", text, record) for text, record in zip(texts, records or [{}] * len(texts), strict=True)]
    ids = torch.tensor(by_model)[:, None]
    rewards.ask(samples)
    return rewards.combine(rewards.read_models(ids, torch.ones_like(ids), 1, torch.ones(len(ids))), samples)


def test_the_reward_model_alone_is_left_as_it_is(build):
    found = score(build(model={}), [1, 2, -3], ["", "", ""])
    assert found.total.tolist() == [1, 2, -3] and found.metrics == {}


def test_rewards_are_cut_weighed_and_logged_apart(build):
    rewards = build(model={"weight": 2.0}, mine={"kind": "function", "weight": -0.5, "clip": 3.0})
    found = score(rewards, [1, 2], ["10", "-2"])
    assert found.total.tolist() == [2 - 1.5, 4 + 1]
    assert found.metrics == {
        "reward/model": 1.5, "reward/model_shaped": 3.0, "reward/mine": 4.0, "reward/mine_shaped": -0.25,
        "reward/unscored": 0.0,
    }  # fmt: skip


def test_a_reward_applies_where_it_and_the_record_say_so(build):
    rewards = build(model={}, mine={"kind": "function"})
    records = [{}, {}, {"rewards": ["mine"]}, {"rewards": "model"}, {"rewards": ["mine"]}]
    found = score(rewards, [1, 1, 1, 1, 1], ["5", "none", "5", "5", "none"], records)
    assert found.total.tolist() == [6, 1, 5, 1, 0]
    assert found.is_scored.tolist() == [True, True, True, True, False]
    assert found.metrics["reward/unscored"] == 1 and found.metrics["reward/mine"] == 5
    asked = [sample.response for sample in rewards.texts["mine"].samples]
    assert asked == ["5", "none", "5", "none"]  # a function need not know records of others


def test_metrics_may_be_of_the_first_responses_alone(build):
    """As of a rollout whose greedy answers, the baselines, come last."""
    rewards = build(model={}, mine={"kind": "function", "normalize": "batch"})
    rewards.ask(samples := [Sample("?", text, {}) for text in ("1", "none", "5", "none")])
    found = rewards.combine(torch.tensor([[1.0], [3.0], [9.0], [9.0]]), samples, count=2)
    assert found.total.tolist() == pytest.approx([0, 3, 10, 9])
    assert (found.metrics["reward/model"], found.metrics["reward/mine"], found.metrics["reward/mine_shaped"]) == (2, 1, -1)


def test_scores_are_normalised_over_a_batch_or_over_all_so_far(build):
    rewards = build(a={"kind": "function", "normalize": "batch"})
    assert score(rewards, [0, 0], ["1", "5"]).total.tolist() == pytest.approx([-1, 1])
    assert score(rewards, [0, 0], ["7", "7"]).total.tolist() == [0, 0]
    running = build(a={"kind": "function", "normalize": "running"})
    score(running, [0, 0], ["1", "5"])
    third = score(running, [0, 0], ["3", "11"]).total.tolist()
    mean, deviation = 5.0, math.sqrt((16 + 0 + 4 + 36) / 4)
    assert third == pytest.approx([(3 - mean) / deviation, (11 - mean) / deviation])


def test_spans_are_weighed_and_normalised_with_the_score_that_they_are_part_of(build):
    rewards = build(model={}, a={"kind": "function", "weight": -2.0, "normalize": "batch"}, b={"kind": "function"})
    records = [{}, {"rewards": ["model", "b"]}, {}]
    found = score(rewards, [0, 0, 0], ["1 3:0.5", "9 2:9", "5 4:-1 6:2"], records)
    (first, second), by_b = (-2 * 0.5 / 2, 0.5), (9.0, 2)  # 1 and 5: mean 3, deviation 2
    assert [[end for end, _ in spans] for spans in found.spans] == [[3, 3], [2], [4, 6, 4, 6]]
    assert [value for _, value in found.spans[0]] == pytest.approx([first, second])
    assert found.spans[1] == [(2, by_b[0])] and [v for _, v in found.spans[2]] == pytest.approx([1, -2, -1, 2])
    assert found.metrics["reward/on_spans"] == pytest.approx((first + second + 9 + 0) / 3)
    assert found.total.tolist() == pytest.approx([2 + 1, 9, -2 + 5])


def test_each_reward_is_normalised_within_its_group_before_it_is_weighed(build):
    """Scores 0, 1 and 10, 0 of one group, 0, 1 and 0, none of the other: distances are in deviations (n - 1)."""
    rewards = build(algorithm="gdpo", model={"weight": 2.0}, mine={"kind": "function", "weight": -1.0})
    found = score(rewards, [0, 1, 0, 1], ["10", "0", "0", "none"]).by_group
    half = math.sqrt(0.5)
    assert found.tolist() == pytest.approx([-3 * half, 3 * half, -2 * half, 2 * half], rel=1e-4)
    assert score(build(model={}), [0, 1], ["", ""]).by_group is None


def test_running_statistics_resume_bit_by_bit(build):
    terms = {"model": {"normalize": "running"}, "mine": {"kind": "function", "normalize": "running"}}
    first, resumed = build(**terms), build(**terms)
    score(first, [1, 4], ["2", "0.3"])
    resumed.load_state_dict(first.state_dict())
    again = [score(rewards, [2, -7], ["0.1", "none"]).total for rewards in (first, resumed)]
    assert torch.equal(*again) and first.state_dict() == resumed.state_dict()


def test_a_score_that_is_not_finite_leaves_the_running_statistics(build):
    rewards = build(model={"normalize": "running"})
    score(rewards, [1, 2], ["", ""])
    before = rewards.state_dict()
    broken = rewards.combine(torch.tensor([[1.0], [math.nan]]), [])
    assert not torch.isfinite(broken.total).all() and rewards.state_dict() == before


def test_moments_are_those_of_all_scores():
    moments, scores = Moments(), [0.5, -1.0, 3.0, 8.0, 8.0]
    for part in (scores[:2], [], scores[2:]):
        moments.update(part)
    spread = torch.tensor(scores, dtype=torch.float64)
    assert (moments.mean, moments.deviation) == pytest.approx((spread.mean().item(), spread.std(correction=0).item()))


def test_gold_judges_and_is_not_trained_on(build):
    rewards = build("mine", model={}, mine={"kind": "function"})
    assert score(rewards, [1, 2], ["9", "9"]).total.tolist() == [1, 2]
    ids = torch.tensor([[1], [2]])
    assert rewards.judge((ids, ids, 1, ids), [Sample("?", "9"), Sample("?", "4")]) == [9.0, 4.0]
    assert build(model={}).judge((ids, ids, 1, ids), []) is None
    of_model = build("judge", model={}, judge={"kind": "model", "path": "somewhere"})
    assert of_model.judge((ids, ids, 1, ids), []) == [1.0, 2.0]


def test_an_evaluation_sums_raw_scores(build):
    rewards = build(model={"normalize": "batch"}, mine={"kind": "function", "weight": 2.0, "clip": 1.0})
    assert rewards.evaluate(torch.tensor([[3.0]]), [Sample("?", "5")])[0] == [13.0]


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", [2.0, 5.0]), ("min", [1.0, 5.0]), ("mean_minus_std", [2.0 - 0.5 * 1.0, 5.0])]
)
def test_an_ensemble_combines_its_members_and_tells_their_disagreement(make_config, combine, expected):
    term = RewardTerm(**(DEFAULTS | {"kind": "ensemble", "members": 2, "combine": combine, "std_coef": 0.5}))
    config = with_rewards(make_config(), {"model": term})
    rewards = RewardTotal(config, {"model": [lambda ids, *_: ids[:, 0].float(), lambda ids, *_: ids[:, 1].float()]}, CPU)
    ids = torch.tensor([[1, 3], [5, 5]])
    found = rewards.combine(rewards.read_models(ids, ids, 1, ids), [])
    assert found.total.tolist() == expected and found.metrics["reward/model_disagreement"] == 0.5
