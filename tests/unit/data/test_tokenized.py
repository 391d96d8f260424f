"""Tokenised data is made once, is what the records say, and is made again where anything differs or is damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.texts import encode_comparisons, encode_demonstrations

import rlhf
from rlhf.config.errors import ConfigError
from rlhf.data import artifact, row_encoder, tokenized
from rlhf.data.artifact import read_info
from rlhf.data.files import expect_hashes
from rlhf.data.records import load_dataset
from rlhf.data.templates import build_template
from rlhf.data.tokenized import DataSource, identify_tokenizer, open_data
from rlhf.data.tokens import count_truncated
from rlhf.models.tokenizer import build_tokenizer
from rlhf.stages.reward.comparisons import count_tokens

SMALL = ("data.demo.demonstrations=60", "data.demo.rounds=2", "data.demo.heldout_prompts=330")


@pytest.fixture
def config(make_config, tmp_path):
    return make_config(*SMALL, "data.max_response_tokens=12", f"output_root={tmp_path / 'out'}")


@pytest.fixture
def own(make_config, tmp_path):
    """`own(rows, *overrides)`: a configuration of files with these rows."""

    def make(rows, *overrides):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = f"data.files.train={path}", f"data.files.heldout={path}"
        return make_config("data=files", *files, f"output_root={tmp_path / 'out'}", *overrides)

    return make


def test_it_is_what_the_records_say(config, tokenizer):
    dataset, source, template = load_dataset(config), DataSource(config), build_template(config.data, tokenizer)
    train, heldout = (open_data(source, tokenizer, "demonstrations", part) for part in ("train", "heldout"))
    expected = encode_demonstrations(dataset.train.demonstrations, template)
    assert list(train) == expected and train[:3] == expected[:3] and train[-1] == expected[-1]
    others = encode_demonstrations(dataset.heldout.demonstrations, template)
    assert train.count_responses(heldout) == count_truncated(expected + others)
    assert train.sizes.tolist() == [item.length for item in expected]
    for grouped in (True, False):
        pairs = open_data(source, tokenizer, "comparisons", "train", grouped)
        expected = encode_comparisons(dataset.train.comparisons, template, grouped)
        assert list(pairs) == expected and pairs.sizes.tolist() == [count_tokens(element) for element in expected]
    prompts = open_data(source, tokenizer, "prompts", "train")
    assert list(prompts) == [template.encode_prompt(text) for text in dataset.train.prompts]
    assert [prompts.record(row)[0] for row in range(len(prompts))] == dataset.train.prompts
    pairs = open_data(source, tokenizer, "comparisons", "heldout")
    gold = dataset.gold
    gaps = [gold(c.prompt, c.chosen) - gold(c.prompt, c.rejected) for c in dataset.heldout.comparisons]
    assert pairs.gaps().tolist() == gaps and pairs.info["agreement"] == dataset.agreement


def test_it_is_made_once_for_all_that_agree(config, tokenizer, monkeypatch):
    first = open_data(DataSource(config), tokenizer, "prompts", "train")
    monkeypatch.setattr(tokenized, "load_dataset", lambda config: pytest.fail("the records are read again"))
    assert open_data(DataSource(config), tokenizer, "prompts", "train").path == first.path
    config.ppo.gamma = 0.5
    assert open_data(DataSource(config), tokenizer, "prompts", "train").path == first.path
    monkeypatch.undo()
    for key, value in (("max_prompt_tokens", 60), ("prompt_format", "Q: {prompt} A:")):
        setattr(config.data, key, value)
        assert open_data(DataSource(config), tokenizer, "prompts", "train").path != first.path


def test_a_tokenizer_that_was_saved_counts_as_the_same(config, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    trained = build_tokenizer(config.model, "model", DataSource(config))
    trained.save_pretrained(tmp_path / "saved")
    assert identify_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "saved")) == identify_tokenizer(trained)
    assert identify_tokenizer(tokenizer) != identify_tokenizer(trained)


@pytest.mark.parametrize("name", ["rows.arrow", "tokens.npy", "info.json"])
def test_what_is_damaged_is_made_again(config, tokenizer, name):
    made = open_data(DataSource(config), tokenizer, "prompts", "train")
    before = list(made)
    os.truncate(made.path / name, 3)
    assert read_info(made.path) is None
    assert list(open_data(DataSource(config), tokenizer, "prompts", "train")) == before


KILLED = """
import os, signal, sys
from rlhf import load_config
from rlhf.data import tokenized
from rlhf.models.tokenizer import build_tokenizer
config = load_config(*sys.argv[1:])
source = tokenized.DataSource(config)
tokenizer = build_tokenizer(config.model, "model", source)
class Dying(tokenized.Answers):
    def add(self, row, tally):
        if len(self.hashes) > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().add(row, tally)
tokenized.Answers = Dying
tokenized.open_data(source, tokenizer, "demonstrations", "train")
"""


def test_what_was_killed_half_way_is_made_again(config):
    words = [*SMALL, "data.max_response_tokens=12", f"output_root={config.output_root}"]
    environment = os.environ | {"PYTHONPATH": str(Path(rlhf.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, *words], env=environment, capture_output=True, check=False)
    (path,) = (Path(config.output_root) / "data").glob("demonstrations-*")
    assert done.returncode == -9 and list(path.glob("unfinished-*")) and (path / "lock").exists(), done.stderr
    source = DataSource(config)
    found = open_data(source, build_tokenizer(config.model, "model", source), "demonstrations", "train")
    assert found.path == path and len(found) == 60 and not list(path.glob("unfinished-*"))


def test_a_file_that_changed_is_another_data_set_and_no_planned_one(own, tokenizer, monkeypatch):
    config = own([{"prompt": "Why?", "response": "So."}])
    path = Path(config.data.files.train)
    first = open_data(DataSource(config), tokenizer, "prompts", "train")
    planned = {"data.files.train": DataSource(config).identity["data.files.train"]}
    path.write_text(json.dumps({"prompt": "How?", "response": "So."}) + "\n")
    assert open_data(DataSource(config), tokenizer, "prompts", "train").path != first.path
    with expect_hashes(planned), pytest.raises(ConfigError, match="its hash was"):
        open_data(DataSource(config), tokenizer, "prompts", "train")
    late = DataSource(config)
    assert late.identity
    path.write_text(json.dumps({"prompt": "Who?", "response": "I."}) + "\n")  # between the look at it and the reading
    with pytest.raises(ConfigError, match="its hash was"):
        open_data(late, tokenizer, "demonstrations", "train")


def test_records_are_counted_with_reasons(own, tokenizer):
    rows = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "So it is, and so it will be for ever.", "rejected": "No."},
        {"prompt": "How?", "chosen": "So.", "rejected": "So."},
        {"prompt": None, "chosen": "So.", "rejected": "No."},
        {"prompt": "Who " * 40, "chosen": "I.", "rejected": "You."},
    ]
    source = DataSource(own(rows, "data.max_prompt_tokens=20", "data.max_response_tokens=9"))
    counted = {
        kind: open_data(source, tokenizer, kind, "train").counted for kind in ("demonstrations", "comparisons", "prompts")
    }
    null = {"rows without a prompt": 1}
    assert [(found.read, found.kept) for found in counted.values()] == [(5, 3), (5, 2), (5, 2)]
    assert counted["demonstrations"].dropped == null | {"too long": 1}
    assert counted["comparisons"].dropped == null | {"too long": 1, "chosen = rejected": 1}
    assert counted["prompts"].dropped == null | {"too long": 1, "duplicate": 1}
    assert counted["demonstrations"].cut == 1 and counted["demonstrations"].tokens["response"]["max"] == 9


def test_several_processes_make_the_same(config, tokenizer, monkeypatch, tmp_path):
    alone = list(open_data(DataSource(config), tokenizer, "demonstrations", "train"))
    monkeypatch.setattr(row_encoder, "count_processes", lambda encoder, records: 2)
    monkeypatch.setattr(row_encoder, "CHUNK", 25)
    config.output_root = str(tmp_path / "other")
    assert list(open_data(DataSource(config), tokenizer, "demonstrations", "train")) == alone


def test_a_disk_that_is_full_is_told_in_a_line(config, tokenizer, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(artifact, "write_json", full)
    with pytest.raises(ConfigError, match=r"^output_root=.*cannot be written \(No space left on device\)"):
        open_data(DataSource(config), tokenizer, "prompts", "train")
