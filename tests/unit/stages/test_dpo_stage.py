"""Preference optimisation: what a step reads, and what a run leaves."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.ranks import run_specs, specs
from support.rounding import assert_close, assert_same_gradients
from support.small import SMALL_DEMO
from support.tiny_models import learning_engine, smooth_opt

from rlhf.config.errors import ConfigError
from rlhf.data.check import record_problems
from rlhf.data.encoded import Encoded
from rlhf.data.tokenized import DataSource, open_data
from rlhf.engine.zero import backward, release
from rlhf.experiment.graph import build_graph
from rlhf.experiment.spec import read_spec
from rlhf.launch.worker import run_rank
from rlhf.models.tokenizer import load_tokenizer
from rlhf.runtime.compat.deepspeed import local_shard
from rlhf.stages.dpo import KIND
from rlhf.stages.dpo.items import Item, Items, find_other_prompts, read_items, share_items
from rlhf.stages.dpo.measure import measure
from rlhf.stages.dpo.reference import add_reference
from rlhf.stages.dpo.train import estimate_kl

pytestmark = pytest.mark.rounding

PAIRS = [
    Item((Encoded([5, 6, 7], [8, 9, 1]), Encoded([5, 6, 7], [8, 1])), (-20.0, -15.0)),
    Item((Encoded([5], [6, 1]), Encoded([5], [7, 7, 7, 1])), (-12.0, -25.0)),
    Item((Encoded([9, 8, 7, 6], [5, 4, 3, 1]), Encoded([9, 8, 7, 6], [3, 1])), (-30.0, -16.0)),
]
SMALL = (
    *SMALL_DEMO, "stages=[sft,dpo]", "dpo.loss=kto", "sft.max_steps=2", "dpo.max_steps=3", "dpo.batch_size=8",
    "dpo.micro_batch_size=2",
)  # fmt: skip


@torch.no_grad()
def test_a_responses_log_probability_is_the_sum_over_its_tokens(make_config, tokenizer):
    config = make_config()
    engine = learning_engine(config, tokenizer)
    engine.eval()
    found = read_items(engine, PAIRS, config.dpo, pad=0)
    for side in (0, 1):
        for number, pair in enumerate(PAIRS):
            item = pair.answers[side]
            logits = engine.module(input_ids=torch.tensor([item.prompt + item.response])).logits[0].double()
            logprobs, start = torch.log_softmax(logits, -1), len(item.prompt)
            expected = sum(logprobs[start + i - 1, token].item() for i, token in enumerate(item.response))
            assert found.sums[number, side].item() == pytest.approx(expected, rel=1e-5)
            assert found.tokens[number, side] == len(item.response)
    assert found.reference.tolist() == [list(pair.reference) for pair in PAIRS]


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_the_gradient_is_the_same_without_padding_and_in_parts(make_config, tokenizer, family):
    found = {}
    with smooth_opt():
        for packing, size in (("none", 3), ("length", 2), ("packed", 2)):
            config = make_config(f"model={family}-tiny", f"dpo.packing={packing}")
            engine, losses = learning_engine(config, tokenizer), []
            engine.train()
            for part in share_items(engine, PAIRS, size, packing):
                loss = measure(read_items(engine, part, config.dpo, pad=0), 0.0, config.dpo)["loss"][0].sum()
                backward(engine, loss, 3.0)
                losses.append(loss.detach())
            gradient = [local_shard(p.grad).clone() for p in engine.module.parameters() if p.grad is not None]
            found[packing] = torch.stack(losses).sum(), gradient
            release(engine)
    for packing in ("length", "packed"):
        assert_close(found[packing][0], found["none"][0])
        assert_same_gradients(found[packing][1], found["none"][1])


def mismatched(pair, other, reference):
    """A pair, and its prompt with the responses to another one's."""
    answers = tuple(replace(answer, prompt=pair.answers[0].prompt) for answer in other.answers)
    return replace(pair, mismatched=Item(answers, reference))


@torch.no_grad()
@pytest.mark.parametrize("packing", ["none", "packed"])
def test_the_kl_is_that_of_responses_to_other_prompts(make_config, tokenizer, packing):
    config = make_config("dpo.loss=kto", f"dpo.packing={packing}")
    engine = learning_engine(config, tokenizer)
    engine.eval()
    pairs = [mismatched(pair, other, (0.0, 0.0)) for pair, other in pairwise((*PAIRS, PAIRS[0]))]
    found = read_items(engine, [pair.mismatched for pair in pairs], config.dpo, pad=0)
    near = [
        replace(pair, mismatched=replace(pair.mismatched, reference=(c - 0.5, r - 0.1)))
        for pair, (c, r) in zip(pairs, found.sums.tolist(), strict=True)
    ]
    assert estimate_kl(engine, near, 3.0, 2, config.dpo, 0) == pytest.approx(0.3, abs=1e-4)
    assert estimate_kl(engine, pairs, 3.0, 2, config.dpo, 0) == 0.0  # the mean is below 0


def test_the_next_record_with_another_prompt():
    assert find_other_prompts(np.array([4, 4, 7, 5, 5, 4])).tolist() == [2, 2, 3, 5, 5, 2]
    with pytest.raises(ConfigError, match="all records have one prompt"):
        find_other_prompts(np.array([3, 3]))


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (("dpo.mix={simpo: 1}",), "dpo.mix.simpo", "add cdpo or robust or hinge or kto"),
        (("dpo.mix={dpo: 1}",), "dpo.mix.dpo", "add cdpo"),
        (("dpo.mix={sft: 1}",), "dpo.mix.sft", "add cdpo"),
        (("dpo.mix={hinge: -1}",), "dpo.mix.hinge", "dpo.mix={hinge: 0.5}"),
        (("dpo.loss=orpo", "dpo.mix={simpo: 1}"), "dpo.mix.simpo", "dpo.nll_coef"),
        (("dpo.desirable_weight=2",), "dpo.desirable_weight", "leave it out"),
        (("dpo.ipo_sums=true",), "dpo.ipo_sums", "leave it out"),
        (("dpo.unpaired=true",), "dpo.unpaired", "choose dpo.loss=kto"),
        (("dpo.loss=kto", "dpo.unpaired=true", "dpo.mix={dpo: 1}"), "dpo.mix", "leave dpo.mix or dpo.unpaired out"),
        (("dpo.loss=kto", "dpo.unpaired=true", "dpo.nll_coef=1"), "dpo.nll_coef", "set it 0"),
    ],
)
def test_losses_that_cannot_be_summed_are_refused(make_config, overrides, key, fix):
    (error,) = KIND.problems(make_config("stage=sft-dpo", *overrides))
    assert error.key == key and fix in error.fix
    assert not list(KIND.problems(make_config("dpo.loss=ipo", "dpo.ipo_sums=true", "dpo.mix={kto: 1}")))


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    config = make_config(*SMALL, f"output_root={tmp_path_factory.mktemp('dpo')}")
    for file in specs(config):
        run_rank(read_spec(file))
    return config


def metrics_of(config):
    """The lines that the stage logged."""
    (node,) = [node for node in build_graph(config) if node.stage == "dpo"]
    return [json.loads(line) for line in (node.directory.path / "metrics.jsonl").read_text().splitlines()]


def test_the_data_verb_shows_the_responses_as_what_is_learnt(cli):
    code, out, _ = cli("data", *SMALL, "--json", "--samples", "1")
    shown = [sample for sample in json.loads(out)["samples"] if sample["stage"] == "dpo"]
    assert code == 0 and [sample["side"] for sample in shown] == ["chosen", "rejected"]
    for sample in shown:
        learnt = [token for token, loss in zip(sample["ids"], sample["loss"], strict=True) if loss]
        assert 1 < len(learnt) < len(sample["ids"]) and sample["response"].endswith("<|endoftext|>")


def test_a_run_starts_at_the_reference_and_moves_the_pairs_apart(trained):
    lines = metrics_of(trained)
    assert lines[0]["train/loss"] == pytest.approx(0.5, abs=1e-5)
    assert lines[0]["train/reward_chosen"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["eval/accuracy_initial"] == pytest.approx(0.5)
    assert lines[-1]["eval/margin"] > 0 and lines[-1]["eval/accuracy"] > 0.5
    assert lines[-1]["eval/loss"] < 0.5


def test_what_the_policy_answers_is_measured_as_of_every_policy(trained):
    (node,) = [node for node in build_graph(trained) if node.stage == "dpo"]
    result = json.loads((node.directory.path / "result.json").read_text())["metrics"]
    names = {"gold", "gold_sft", "gold_sft_std", "kl_sequence", "length", "length_sft", "entropy", "win_rate"}
    assert {f"eval/{name}" for name in names} <= set(result) and "eval/reward" not in result
    assert result["eval/kl_sequence"] > 0
    rows = [json.loads(line) for line in node.directory.samples_file.read_text().splitlines()]
    assert len(rows) == trained.data.demo.heldout_prompts
    assert set(rows[0]) == {"step", "prompt", "sft", "dpo", "sft_gold", "dpo_gold"}
    assert json.loads((node.directory.path / "data.json").read_text())["train"]["kept"] > 0


def test_a_reward_judges_where_it_is_there_without_being_trained_for_it(make_config):
    def stages(*overrides):
        return {node.stage: node for node in build_graph(make_config("dry_run=true", *overrides))}

    judged = "+rewards.brief.kind=function", "rewards.brief.function=length"
    plain, scored, whole = stages("stage=sft-dpo"), stages("stage=sft-dpo", *judged), stages("stage=sft-reward-dpo")
    assert [set(found) for found in (plain, scored)] == [{"sft", "dpo"}] * 2
    assert set(whole["dpo"].inputs) == {"policy", "reward"} and set(plain["dpo"].inputs) == {"policy"}
    assert len({found["dpo"].fingerprint for found in (plain, scored, whole)}) == 3
    assert stages("stage=sft-dpo", "rewards.model.weight=2")["dpo"].fingerprint == plain["dpo"].fingerprint
    roles = [len(KIND.roles(make_config(f"stage={stage}"))) for stage in ("sft-dpo", "sft-reward-dpo")]
    assert roles == [1, 2]


def test_only_the_pairs_that_a_step_reads_are_read_by_the_reference(trained):
    found = [len(np.load(file)) for file in Path(trained.output_root).glob("data/reference-*/logprobs.npy")]
    heldout = 2 * trained.data.demo.heldout_prompts  # each prompt is answered in two rounds, by two answers
    assert sorted(found) == sorted([3 * 8, heldout] * 2)  # once with their own prompts, once with other ones


def test_a_run_with_another_beta_reads_no_reference_anew(trained):
    (node,) = [node for node in build_graph(trained) if node.stage == "dpo"]
    config, policy = read_spec(node.directory.spec_file).config, node.inputs["policy"]
    config = replace(config, dpo=replace(config.dpo, beta=0.3))
    tokenizer, source = load_tokenizer(policy, "dpo.policy"), DataSource(config)
    train, heldout = (Items(open_data(source, tokenizer, "comparisons", part), True) for part in ("train", "heldout"))
    add_reference(config, policy, train, heldout, pytest.fail)
    assert len(train.reference) == len(train.mismatched_reference) == 24
    assert all(pair.reference[0] < 0 and pair.mismatched.reference[0] < 0 for pair in heldout)


@pytest.mark.slow
def test_two_ranks_do_what_one_does(trained, make_config, tmp_path):
    config = make_config(*SMALL, f"output_root={tmp_path}", "hardware.gpus_per_node=2", "zero='3'")
    run_specs(specs(config), world=2)
    for line, other in zip(metrics_of(trained), metrics_of(config), strict=True):
        names = [
            "train/loss",
            "train/kl_estimate",
            "train/logp_chosen",
            "train/grad_norm",
            "eval/loss",
            "eval/margin",
            "eval/kl_sequence",
        ]
        if line["step"] > 1:  # before the first update every pair is a tie, which rounding breaks
            names.append("train/accuracy")
        for name in names:
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name


def test_a_loss_without_a_reference_reads_none(make_config, tmp_path):
    config = make_config(*SMALL, "dpo.loss=simpo", f"output_root={tmp_path}")
    for file in specs(config):
        run_rank(read_spec(file))
    assert not list(Path(config.output_root).glob("data/reference-*"))
    assert metrics_of(config)[-1]["eval/accuracy_initial"] != 0.5


# Responses by themselves, of which each prompt has one: more desirable ones than others.
LABELS = [{"prompt": f"Question {n}?", "completion": "Yes." if n % 3 else "No, no.", "label": n % 3 > 0} for n in range(48)]


@pytest.fixture
def labelled(tmp_path):
    """The words for a data set of labelled responses."""
    for part, rows in (("train", LABELS[:36]), ("heldout", LABELS[36:])):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"data.files.{part}={tmp_path}/{part}.jsonl" for part in ("train", "heldout")]
    return [
        "data=files",
        *files,
        "data.max_prompt_tokens=64",
        "data.max_response_tokens=64",
        f"output_root={tmp_path}",
        *SMALL[len(SMALL_DEMO) :],
    ]


def test_responses_with_a_label_are_refused_where_pairs_are_needed(make_config, labelled):
    for words, stage in ((("dpo.loss=dpo",), "dpo"), (("dpo.loss=kto",), "dpo"), (("stages=[sft,reward]",), "reward")):
        (error,) = record_problems(make_config(*labelled, *words), stage)
        assert error.problem == f"it has 36 responses with a label and no pair, which {stage} needs"
        assert "dpo.loss=kto dpo.unpaired=true" in error.fix
    assert not list(record_problems(make_config(*labelled, "dpo.unpaired=true"), "dpo"))


def test_the_data_verb_shows_labelled_responses_and_how_they_weigh(cli, labelled):
    code, out, _ = cli("data", *labelled, "dpo.unpaired=true", "--json", "--samples", "2")
    found = json.loads(out)
    assert (
        code == 0
        and found["stages"]["dpo"]["kept"] == 36
        and found["stages"]["sft"]["dropped"] == {"without a response": 12}
    )
    assert [sample["side"] for sample in found["samples"] if sample["stage"] == "dpo"] == ["undesirable", "desirable"]
    (told,) = [text for text in found["warnings"] if "weigh" in text]
    assert told == (
        "dpo: 24 desirable responses and 12 undesirable responses; together the desirable ones should weigh 1 to 4/3 times "
        "the others: dpo.undesirable_weight=2 makes them weigh alike"
    )


def test_items_of_labelled_responses_join_their_prompt_with_the_next_ones_response(make_config, labelled, tokenizer):
    rows = open_data(DataSource(make_config(*labelled, "dpo.unpaired=true")), tokenizer, "labelled", "train")
    items = Items(rows, mismatched=True)
    assert [item.desirable for item in items] == [row["label"] for row in LABELS[:36]]
    for own, other in pairwise(items):
        (answer,), (joined,), (following,) = own.answers, own.mismatched.answers, other.answers
        assert joined.prompt == answer.prompt and joined.response == following.response


def test_the_responses_of_pairs_are_read_by_themselves(make_config, tokenizer):
    source = DataSource(make_config(*SMALL))
    pairs, single = (open_data(source, tokenizer, kind, "heldout") for kind in ("comparisons", "labelled"))
    answers = [(answer.response, side == 0) for pair in Items(pairs) for side, answer in enumerate(pair.answers)]
    assert [(item.answers[0].response, item.desirable) for item in Items(single)] == answers


@pytest.mark.slow
def test_labelled_responses_train_and_two_ranks_do_what_one_does(make_config, labelled, tmp_path):
    found = []
    for ranks, more in ((1, ()), (2, ("hardware.gpus_per_node=2", "zero='3'"))):
        config = make_config(*labelled, "dpo.unpaired=true", "dpo.warmup_steps=0", f"output_root={tmp_path}/{ranks}", *more)
        run_specs(specs(config), world=ranks)
        found.append(metrics_of(config))
    first, last = found[0][0], found[0][-1]
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-5) and last["eval/accuracy_initial"] == 0.5
    assert last["eval/margin"] > 0 and last["eval/loss"] < 0.5
    for line, other in zip(*found, strict=True):
        for name in (
            "train/loss",
            "train/kl_estimate",
            "train/reward_rejected",
            "eval/loss",
            "eval/margin",
            "eval/margin_se",
        ):
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name
