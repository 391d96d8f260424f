"""Every data set that conf/data names is read as its authors publish it, into the texts and tokens that a model reads."""

import json
from dataclasses import replace

import pytest
from support.hub_rows import HH, SETS, SHP
from support.texts import encode_comparisons, encode_demonstrations

from rlhf.cli.fetch import find_downloads
from rlhf.config.compose import config_root
from rlhf.config.errors import ConfigError
from rlhf.data import records
from rlhf.data.check import count_without_download, record_notes
from rlhf.data.dataset import Dataset
from rlhf.data.deepspeed_chat import cut
from rlhf.data.hub import load_split
from rlhf.data.records import load_dataset, load_part
from rlhf.data.templates import build_template
from rlhf.data.templates.plain import render_prompt, render_response
from rlhf.data.tokenized import DataSource
from rlhf.evaluation.heldout import heldout_prompts

OWN = {"demo", "files", "hub", "mixture", "deepspeed-chat-jsonfile"}
OPTIONS = sorted(path.stem for path in (config_root() / "conf" / "data").glob("*.yaml"))
ASKED = ("name", "config", "split", "revision", "key", "data_dir")


@pytest.fixture
def read(make_config, data_option, monkeypatch):
    """Read a set of these rows instead of the hub's: its configuration, its training split, and what the hub was asked."""

    def run(option, rows, **changes):
        asked = []

        def load_split(*arguments):
            asked.append(dict(zip(ASKED, arguments, strict=True)))
            return rows

        monkeypatch.setattr(records, "load_split", load_split)
        config = make_config()
        config.data = replace(data_option(option), **changes, heldout_fraction=None)  # a row cannot be cut
        return config, load_part(config, "train"), asked[0]

    return run


def test_every_named_set_has_rows_here():
    assert set(OPTIONS) - OWN == set(SETS)


@pytest.mark.parametrize("option", SETS)
def test_a_set_gives_the_texts_that_a_model_reads(read, option):
    rows, (prompt, response, rejected) = SETS[option]
    config, found, asked = read(option, rows)
    data = config.data
    assert asked["name"] == data.hub.name and asked["data_dir"] == data.hub.data_dir
    assert [render_prompt(text, data) for text in found.prompts] == [prompt]
    assert render_response(found.demonstrations[-1].response, data) == response
    pairs = [[render_response(text, data) for text in (pair.chosen, pair.rejected)] for pair in found.comparisons]
    assert pairs == ([[response, rejected]] if rejected else [])


@pytest.mark.parametrize("option", ["deepspeed-chat-rm-static", "hh-rlhf", "ultrafeedback", "oasst1", "dolly", "math"])
def test_tokens_of_a_set_are_its_text_and_its_end(read, tokenizer, option):
    rows, (prompt, response, rejected) = SETS[option]
    config, found, _ = read(option, rows, max_prompt_tokens=400, max_response_tokens=400)
    template = build_template(config.data, tokenizer)
    (item,) = encode_demonstrations(found.demonstrations, template)
    assert tokenizer.decode(item.prompt) == prompt and item.prompt == tokenizer(prompt)["input_ids"]
    assert item.response == [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    if rejected:
        (((chosen, other),),) = encode_comparisons(found.comparisons, template, grouped=False)
        assert (chosen.response, tokenizer.decode(other.response[:-1])) == (item.response, rejected)


@pytest.mark.parametrize(("option", "answer"), [("gsm8k", "1200"), ("math", "1,200")])
def test_the_reference_answer_is_known_of_a_prompt(read, tokenizer, option, answer):
    config, found, _ = read(option, SETS[option][0])
    assert found.meta["Why?"]["answer"] == answer
    source = DataSource(config)
    source.identity, source.dataset = {"data": option}, Dataset(found, found)
    (prompt,) = heldout_prompts(source, tokenizer)
    assert prompt.meta["answer"] == answer


def test_deepspeed_chats_own_files_get_a_blank_before_each_text(make_config, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"prompt": "Human: Why? Assistant:", "chosen": "Because.", "rejected": "No."}) + "\n")
    config = make_config("data=deepspeed-chat-jsonfile", f"data.files.train={path}", f"data.files.heldout={path}")
    (pair,) = load_dataset(config).train.comparisons
    assert render_prompt(pair.prompt, config.data) == " Human: Why? Assistant:"
    assert [render_response(text, config.data) for text in (pair.chosen, pair.rejected)] == [" Because.", " No."]


@pytest.mark.parametrize(
    ("option", "row", "reason"),
    [
        ("deepspeed-chat-mkqa-chinese", {"queries": {"zh_cn": "q"}, "answers": {"zh_cn": [{"text": None}]}}, "an answer"),
        ("deepspeed-chat-sharegpt", {"prompt": "", "label": "a"}, "rows without a prompt or a response"),
        ("deepspeed-chat-miracl-zh", {"query": "q", "positive_passages": [{"text": "a"}], "negative_passages": []},
         "rows without passages in negative_passages"),
        ("deepspeed-chat-reward-datasets", {"prompt": "q", "chosen": "a", "rejected": "b"}, "do not begin with"),
        ("hh-rlhf", {"chosen": HH["chosen"], "rejected": "\n\nHuman: q\n\nAssistant: a"}, "differ before the last answer"),
        ("tldr-preference", SETS["tldr-preference"][0][0], "articles instead of posts"),
        ("helpsteer2", SETS["helpsteer2"][0][0] | {"preference_strength": 0}, "pairs without a preference"),
        ("ultrafeedback-raw", SETS["ultrafeedback-raw"][0][0] | {"completions": []}, "rows without completions"),
    ],
)  # fmt: skip
def test_rows_that_a_set_has_no_text_for_are_counted(read, option, row, reason):
    rows = SETS[option][0]
    _, found, _ = read(option, [*rows, row])
    _, before, _ = read(option, rows)
    added = {kind: number - before.left_out.get(kind, 0) for kind, number in found.left_out.items()}
    assert [number for kind, number in added.items() if reason in kind] == [1]


def test_rows_of_another_set_are_refused_with_what_was_found(read):
    with pytest.raises(ConfigError) as error:
        read("helpsteer3", [{"prompt": "q", "answer": "a"}])
    assert str(error.value).startswith("data.hub.name=nvidia/HelpSteer3 (train): no row holds a record, read as helpsteer3")
    assert "found: prompt, answer" in str(error.value)


def test_a_restricted_licence_and_another_number_of_rows_are_told(make_config, monkeypatch):
    monkeypatch.setattr(
        records, "load_split", lambda *arguments: [SETS["alpaca"][0][0] | {"instruction": str(i)} for i in range(100)]
    )
    notes = list(record_notes(make_config("data=alpaca")))
    assert "data.hub.name=tatsu-lab/alpaca: the licence restricts commercial use: cc-by-nc-4.0" in notes
    assert any("98 rows read as alpaca (instruction, output)" in note for note in notes)
    monkeypatch.setattr(records, "load_split", lambda *arguments: [SHP])
    notes = list(record_notes(make_config("data=shp")))
    assert any("published are 348718 rows" in note for note in notes) and not any("licence" in note for note in notes)


def test_a_plan_counts_published_rows_where_they_are_records(make_config):
    def counted(option):
        found = [count_without_download(make_config(f"data={option}"), part) for part in ("train", "heldout")]
        return [counts and counts.demonstrations for counts in found]

    assert counted("ultrafeedback") == [61135, 2000]
    assert counted("alpaca") == [50962, 1040]
    assert counted("oasst1") == counted("nectar") == [None, None]


@pytest.mark.parametrize(("option", "splits"), [("alpaca", ("train",)), ("ultrafeedback", ("train_prefs", "test_prefs"))])
def test_the_splits_that_are_read_are_those_that_are_fetched(make_config, option, splits):
    (download,) = find_downloads([make_config(f"data={option}")])
    assert download.splits == splits


@pytest.mark.parametrize(
    ("count", "proportions", "sizes"),
    [
        (101, (2, 4, 4), [21, 40, 40]), (7, (2, 4, 4), [1, 3, 3]), (1, (2, 4, 4), [1, 0, 0]), (100, (9, 1), [90, 10]),
        (33143, (9, 1), [29829, 3314]),
    ],
)  # fmt: skip
def test_parts_are_cut_with_deepspeed_chats_rounding(count, proportions, sizes):
    """The first three were seen in DeepSpeed-Chat itself."""
    parts = cut(count, proportions, 1234)
    assert [len(part) for part in parts] == sizes
    assert sorted(place for part in parts for place in part) == list(range(count))


@pytest.mark.parametrize("key", ["data.hub.name", "data.mix.a.hub.name"])
def test_a_set_that_a_script_reads_is_refused_with_the_revision_to_give(monkeypatch, tmp_path, key):
    """The error is the library's own."""
    monkeypatch.setattr("rlhf.data.hub.find_hub_problem", lambda *arguments: None)
    directory = tmp_path / "scripted"
    directory.mkdir()
    (directory / "scripted.py").write_text("import datasets")
    with pytest.raises(ConfigError) as error:
        load_split(str(directory), None, "train", None, key)
    fix = f"set {key.removesuffix('name')}revision=refs/convert/parquet, the copy that the hub keeps without it"
    assert str(error.value) == f"{key}={directory}: it is read by a script of its own, which datasets no longer runs; {fix}"
