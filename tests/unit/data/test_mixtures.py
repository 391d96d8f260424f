"""Mixtures hold what their weights say, the shares of stages have no prompt in common, and a fingerprint knows both."""

import json
from collections import Counter

import pytest

from rlhf.cli.fetch import find_downloads
from rlhf.config.checks import check_without_shapes
from rlhf.config.errors import ConfigError
from rlhf.data.check import count_part, count_without_download, record_notes, record_problems
from rlhf.data.dataset import Message, Record
from rlhf.data.deepspeed_chat import cut
from rlhf.data.mixtures import draw, group_records, interleave
from rlhf.data.records import load_dataset, load_part
from rlhf.experiment.fingerprint import data_files, fingerprint
from rlhf.experiment.resolve import select_share


def write(path, name, count, **more):
    rows = [{"prompt": f"{name}{i}", "response": "r", "chosen": "c", "rejected": "x", **more} for i in range(count)]
    path.write_text("".join(json.dumps({key: cell for key, cell in row.items() if cell}) + "\n" for row in rows))
    return path


@pytest.fixture
def compose(make_config, tmp_path):
    """A mixture of `a`, 40 rows, and `b`, 20 rows, each with 4 held-out rows; the arguments are keys of the two."""
    for name, count in (("a", 40), ("b", 20)):
        write(tmp_path / f"{name}.jsonl", name, count)
        write(tmp_path / f"{name}-heldout.jsonl", f"{name}-heldout", 4)

    def run(a="", b="", *overrides):
        files = "files: {{train: '{0}/{1}.jsonl', heldout: '{0}/{1}-heldout.jsonl'}}"
        first, second = (
            f"{name}: {{{', '.join(filter(None, (keys, files.format(tmp_path, name))))}}}"
            for name, keys in (("a", a), ("b", b))
        )
        return make_config("data=mixture", f"data.mix={{{first}, {second}}}", *overrides)

    return run


def names(prompts):
    """How many prompts are of each set."""
    return dict(Counter(prompt[0] for prompt in prompts))


@pytest.mark.parametrize(
    ("a", "b", "strategy", "taken"),
    [
        ("", "", "first_exhausted", {"a": 40, "b": 20}),
        ("weight: 1", "weight: 1", "first_exhausted", {"a": 20, "b": 20}),
        ("weight: 0.9", "weight: 0.1", "first_exhausted", {"a": 40, "b": 4}),
        ("weight: 1", "weight: 1", "all_exhausted", {"a": 40, "b": 40}),
        ("weight: 1", "weight: 3", "all_exhausted", {"a": 40, "b": 120}),
        ("records: 5", "records: 50", "first_exhausted", {"a": 5, "b": 50}),
    ],
)
def test_a_mixture_has_the_records_that_weights_and_numbers_say(compose, a, b, strategy, taken):
    config = compose(a, b, f"data.stopping_strategy={strategy}")
    train, heldout = (load_part(config, part) for part in ("train", "heldout"))
    for records in (train.demonstrations, train.comparisons):
        assert names(record.prompt for record in records) == taken
    assert names(record.prompt for record in train.labelled) == {name: 2 * number for name, number in taken.items()}
    assert names(train.prompts) == taken and names(heldout.prompts) == {"a": 4, "b": 4}
    often = Counter(train.prompts)
    for name, size in (("a", 40), ("b", 20)):
        assert {often[prompt] for prompt in often if prompt[0] == name} <= {taken[name] // size, -(-taken[name] // size)}
    assert load_part(config, "train") == train
    assert {train.meta[prompt]["set"] for prompt in train.prompts} == {"a", "b"}


def test_another_seed_takes_other_records_and_every_beginning_is_a_mixture(compose):
    config = compose("weight: 1", "weight: 3", "seed=1")
    first = load_part(config, "train").prompts
    config.seed = 2
    second = load_part(config, "train").prompts
    assert set(first) != set(second) and names(first) == names(second) == {"a": 7, "b": 20}
    assert names(first[:8]) == {"a": 2, "b": 6}


def test_each_kind_of_record_is_mixed_among_the_sets_that_have_it(compose, tmp_path):
    write(tmp_path / "b.jsonl", "b", 20, chosen=None, rejected=None)
    config = compose("weight: 1", "weight: 1")
    train = load_part(config, "train")
    assert names(d.prompt for d in train.demonstrations) == {"a": 20, "b": 20}
    assert names(pair.prompt for pair in train.comparisons) == {"a": 40}


def test_records_stay_where_a_weight_grows():
    assert set(draw(100, 10, 0, 1)) < set(draw(100, 20, 0, 1)) and draw(3, 7, 0, 1)[:6] == [0, 1, 2] * 2
    assert draw(0, 0, 0, 0) == [] and [number for number, _ in interleave([2, 1])] == [0, 1, 0]


def test_what_is_taken_and_repeated_is_told(compose, tmp_path):
    notes = list(record_notes(compose("weight: 1", "weight: 3", "data.stopping_strategy=all_exhausted")))
    where = f"data.mix.b.files.train={tmp_path}/b.jsonl"
    assert f"{where}: 20 rows read as pairs (prompt, response, chosen, rejected)" in notes
    assert f"{where}: 100 of 20 demonstrations repeated" in notes
    assert "data.mix=a,b: training mixture of 160 demonstrations, 160 pairs, 160 prompts" in notes
    notes = list(record_notes(compose("weight: 1", "weight: 3")))
    assert f"data.mix.a.files.train={tmp_path}/a.jsonl: 7 of 40 prompts taken" in notes


def test_no_prompt_is_used_by_two_stages(compose):
    config = compose("", "", "data.split=[2,4,4]", "seed=3")
    used = [load_dataset(select_share(config, stage)) for stage in ("sft", "reward", "ppo")]
    prompts = [set(dataset.train.prompts) for dataset in used]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 60
    assert list(map(len, prompts)) == [12, 24, 24]
    assert [len(dataset.heldout.prompts) for dataset in used] == [8, 8, 8]
    assert not list(
        record_problems(compose("", "", "data.split=[2,4,4]", "sft.batch_size=12", "sft.warmup_steps=0"), "sft")
    )
    (problem,) = record_problems(compose("", "", "data.split=[2,4,4]", "sft.batch_size=16", "sft.warmup_steps=0"), "sft")
    assert "a batch takes 16 demonstrations, and a,b has 12" in str(problem)


def test_a_set_of_one_stage(compose):
    config = compose("split: [1,0,0]", "split: [0,0,1]")
    found = {stage: load_dataset(select_share(config, stage)) for stage in ("sft", "reward", "ppo")}
    assert names(found["sft"].train.prompts) == names(found["sft"].heldout.prompts) | {"a": 40} == {"a": 40}
    assert found["reward"].train.prompts == found["reward"].heldout.prompts == []
    assert names(found["ppo"].train.prompts) == {"b": 20}


def test_deepspeed_chat_splits_rows_by_its_rule(make_config, tmp_path):
    path = write(tmp_path / "rows.jsonl", "p", 101)
    config = make_config(
        "data=deepspeed-chat-jsonfile", f"data.files.train='{path}'", "data.heldout_fraction=0.1", "data.split=[2,4,4]"
    )
    train, heldout = cut(101, (0.9, 0.1), config.seed)
    for share, stage in enumerate(("sft", "reward", "ppo")):
        found = load_dataset(select_share(config, stage))
        for part, rows in ((found.train, train), (found.heldout, heldout)):
            assert part.prompts == [f" p{rows[place]}" for place in cut(len(rows), (2, 4, 4), config.seed)[share]]


def test_conversations_that_begin_alike_are_in_one_share(make_config, tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": f"{j}"}]
        for i in range(20)
        for j in range(3)
    ]
    path.write_text("".join(json.dumps({"prompt": turn, "response": "r"}) + "\n" for turn in turns))
    config = make_config("data=files", f"data.files.train='{path}'", "data.heldout_fraction=0.25")
    train, heldout = (load_part(config, part) for part in ("train", "heldout"))
    openings = [{str(prompt).split("q")[1].split()[0] for prompt in part.prompts} for part in (train, heldout)]
    assert not openings[0] & openings[1] and (len(train.prompts), len(heldout.prompts)) == (45, 15)
    system, user = Message("system", "s"), Message("user", "q")
    rows = [[Record((system, user))], [Record("q")], [], [Record((user,))], [Record((system, user, user))]]
    assert group_records(rows) == [[0, 4], [1, 3], [2]]


def test_fingerprints_know_the_sets_their_files_and_their_shares(compose, tmp_path):
    def prints(*arguments, stage="sft"):
        config = compose(*arguments)
        return fingerprint(select_share(config, stage), stage, {})

    before = prints()
    assert before == prints()
    different = [("weight: 1", "weight: 1"), ("weight: 1", "weight: 2"), ("records: 1", "records: 2"),
                 ("", "", "data.split=[2,4,4]"), ("split: [1,0,0]", ""), ("converter: pairs", "")]  # fmt: skip
    assert len({before, *(prints(*arguments) for arguments in different)}) == len(different) + 1
    config = compose()
    hashes = data_files(config, "sft")
    assert set(hashes) == {f"data.mix.{name}.files.{part}" for name in "ab" for part in ("train", "heldout")}
    assert data_files(config, "ppo") == hashes
    write(tmp_path / "b.jsonl", "b", 21)
    assert prints() != before
    with pytest.raises(ConfigError, match=r"^data\.mix\.b\.files\.train=.* it has changed since this stage was planned"):
        from rlhf.experiment.fingerprint import check_data_files

        check_data_files(config, hashes)


def test_members_are_options_with_their_own_keys(make_config):
    config = make_config("data=mixture", "data.mix={hh-rlhf: 0.7, alpaca: {weight: 0.3, heldout_fraction: 0.1}}")
    first, second = config.data.mix.values()
    assert (first.weight, first.converter, first.hub.name) == (0.7, "transcripts", "Anthropic/hh-rlhf")
    assert (second.weight, second.heldout_fraction, second.hub.train_rows) == (0.3, 0.1, 52002)
    assert [(download.key, download.splits) for download in find_downloads([config])] == [
        ("data.mix.hh-rlhf.hub.name", ("train", "test")), ("data.mix.alpaca.hub.name", ("train",)),
    ]  # fmt: skip
    assert count_without_download(config, "train") is None  # hh-rlhf states no rows
    known = make_config("data=mixture", "data.mix={ultrafeedback: 1, alpaca: 1}")
    assert count_without_download(known, "train").prompts == 2 * 50962
    assert count_without_download(known, "heldout").prompts == 2000 + 1040
    listed = make_config("data=mixture", "data.mix=[ultrafeedback,alpaca]")
    assert count_without_download(listed, "train").prompts == 61135 + 50962


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=mixture",), "data.mix=None: data=mixture needs data sets; give some"),
        (("data=mixture", "data.mix={hh-rlfh: 1, alpaca: 2}"), "data.mix.hh-rlfh=hh-rlfh: there is no such data set; did"),
        (("data=mixture", "data.mix=[alpaca,alpaca]"), "data.mix=alpaca: the set is named twice"),
        (("data=mixture", "data.mix={alpaca: lots}"), "data.mix.alpaca=lots: it is neither a weight nor a mapping of keys"),
        (("data=mixture", "data.mix={alpaca: -1}"), "data.mix.alpaca.weight=-1.0: out of range; give a number above 0"),
        (("data=mixture", "data.mix={alpaca: {wieght: 1}}"), "data.mix.alpaca.wieght=1: there is no such key"),
        (("data=mixture", "data.mix={alpaca: {prompt_format: x}}"), "data.mix.alpaca.prompt_format=x: a mixture has"),
        (("data=mixture", "data.mix={alpaca: 1, dolly: {records: 5}}"), "data.mix=alpaca,dolly: some of its sets have"),
        (("data=mixture", "data.mix=[demo,alpaca]"), "data.mix.demo=demo: it is made by code, which no mixture holds"),
        (("data=mixture", "data.mix=[deepspeed-chat-shp]"), "data.mix.deepspeed-chat-shp.format=deepspeed-chat: the"),
        (("data=mixture", "data.mix=[alpaca]", "data.converter=pairs"), "data.converter=pairs: data.source=mixture does"),
        (("data=hub", "data.hub.name=a/b", "data.mix=[alpaca]"), "data.mix=alpaca: data.source=hub does not read it"),
        (("data.split=[2,4,4]",), "data.split=[2.0, 4.0, 4.0]: data.source=demo does not read it"),
        (("data=alpaca", "data.split=[2,4]"), "data.split=[2.0, 4.0]: it takes the shares of fine-tuning"),
        (("data=alpaca", "data.share=1"), "data.share=1: the data set is not split"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_one_line(make_config, overrides, message):
    with pytest.raises(ConfigError) as error:
        check_without_shapes(make_config(*overrides))
    assert any(line.startswith(message) for line in str(error.value).splitlines()), str(error.value)


def test_all_that_is_wrong_is_said_at_once(make_config):
    with pytest.raises(ConfigError) as error:
        make_config("data=mixture", "data.mix={x: 1, alpaca: {hub: {nmae: 1}}}", "+sft.lerning_rate=1")
    keys = [problem.key for problem in error.value.problems]
    assert keys == ["data.mix.x", "data.mix.alpaca.hub.nmae", "sft.lerning_rate"]


def test_an_error_of_a_set_names_its_own_keys(compose, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"frage": "q"}\n')
    with pytest.raises(
        ConfigError, match=r"^data\.mix\.b\.columns\.prompt=prompt: no row has it .* set data\.mix\.b\.converter"
    ):
        count_part(compose(), "train")
