"""Texts for PPO's pre-training loss, from wherever ppo.ptx says."""

import json

import datasets
import pytest

from rlhf.config.errors import ConfigError
from rlhf.data.text import load_texts

ROWS = [{"text": "One.", "other": "a"}, {"text": "Two, two.", "other": "b"}, {"text": "Three", "other": "c"}]
TEXTS = ["One.", "Two, two.", "Three"]


@pytest.fixture
def ptx(make_config):
    """`ptx(source="file", file=...)`: ppo.ptx with these values."""

    def make(**values):
        text = make_config().ppo.ptx
        for key, value in values.items():
            assert hasattr(text, key)
            setattr(text, key, value)
        return text

    return make


def load(text):
    return load_texts(text)


def write(place, kind):
    """The rows as a file of this type."""
    file = place / f"texts{kind}"
    table = datasets.Dataset.from_list(ROWS)
    if kind == ".txt":
        file.write_text("\n".join(TEXTS) + "\n")
    elif kind == ".jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)))
    elif kind == ".json":
        file.write_text(json.dumps(ROWS))
    elif kind == ".csv":
        table.to_csv(file)
    else:
        table.to_parquet(file)
    return str(file)


def refused(text, key, value):
    with pytest.raises(ConfigError) as error:
        load(text)
    message = str(error.value)
    assert message.startswith(f"{key}={value}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_files_of_all_types_hold_the_same_texts(ptx, tmp_path, kind):
    assert load(ptx(source="file", file=write(tmp_path, kind))) == TEXTS


def test_another_column_can_be_named(ptx, tmp_path):
    assert load(ptx(source="file", file=write(tmp_path, ".csv"), column="other")) == ["a", "b", "c"]


def test_rows_without_text_are_left_out(ptx, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "One."}\n{"text": ""}\n{"text": null}\n{"text": "Three"}')
    assert load(ptx(source="file", file=str(tmp_path / "texts.jsonl"))) == ["One.", "Three"]
    (tmp_path / "texts.txt").write_text("One.\n\nThree\n")
    assert load(ptx(source="file", file=str(tmp_path / "texts.txt"))) == ["One.", "Three"]


def test_an_unknown_type_of_file_comes_with_the_known_ones(ptx, tmp_path):
    file = tmp_path / "texts.docx"
    file.write_text("One.")
    message = refused(ptx(source="file", file=str(file)), "ppo.ptx.file", file)
    assert message.endswith("unknown file type; give one of .txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow")


def test_a_column_that_is_not_there_comes_with_those_that_are(ptx, tmp_path):
    message = refused(ptx(source="file", file=write(tmp_path, ".csv"), column="txt"), "ppo.ptx.column", "txt")
    assert "has no such column" in message and message.endswith("; choose among text, other")


@pytest.mark.parametrize(
    ("name", "content"),
    [("texts.jsonl", b"{not json"), ("texts.parquet", b"not parquet"), ("texts.jsonl", b""), ("texts.csv", b"")],
)
def test_a_file_that_cannot_be_read_is_one_line(ptx, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    message = refused(ptx(source="file", file=str(tmp_path / name)), "ppo.ptx.file", tmp_path / name)
    assert "it cannot be read (" in message and message.endswith("; check the file")


def test_an_empty_text_file_has_no_texts(ptx, tmp_path):
    """For what asks for texts to say (rlhf/ppo/ptx.py)."""
    (tmp_path / "texts.txt").write_text("\n")
    assert load(ptx(source="file", file=str(tmp_path / "texts.txt"))) == []


def test_a_hub_data_set_is_asked_for_by_all_its_keys(ptx, monkeypatch):
    asked = []

    def load_dataset(*arguments, **named):
        asked.append((arguments, named))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load(ptx(source="hub", hub="org/texts", config="en", revision="v1", split="test", column="text")) == TEXTS
    assert asked == [(("org/texts", "en"), {"split": "test", "revision": "v1"})]


def test_a_hub_data_set_that_cannot_be_reached_is_one_line(ptx):
    message = refused(ptx(source="hub", hub="org/no-such-texts"), "ppo.ptx.hub", "org/no-such-texts")
    assert "it cannot be loaded (" in message
