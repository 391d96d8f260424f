import csv
import json

import pytest

from rlhf.config.errors import ConfigError
from rlhf.data.dataset import Comparison, Demonstration
from rlhf.data.records import load_dataset

ROWS = [
    {"prompt": "Why?", "response": "Because.", "chosen": "So.", "rejected": "No."},
    {"prompt": "How?", "response": "Thus, \"so\".", "chosen": "Thus.", "rejected": "Naïve,\nno."},
]  # fmt: skip


def write(path, rows):
    """Rows as a file of the type that its name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def load(make_config, tmp_path):
    """Load rows, or a file that is there, as training data."""

    def run(rows, name="train.jsonl"):
        config = make_config("data=files")
        train = write(tmp_path / name, rows) if isinstance(rows, list) else rows
        config.data.files.train = str(train)
        config.data.files.heldout = str(write(tmp_path / "heldout.jsonl", ROWS[:1]))
        return load_dataset(config)

    return run


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_file_type_gives_the_same_records(load, suffix):
    found = load(ROWS, f"train.{suffix}")
    assert found.train.prompts == ["Why?", "How?"]
    assert found.train.demonstrations == [Demonstration(r["prompt"], r["response"]) for r in ROWS]
    assert found.train.comparisons == [Comparison(r["prompt"], r["chosen"], r["rejected"]) for r in ROWS]
    assert found.heldout.prompts == ["Why?"]
    assert (found.gold, found.agreement) == (None, None)


def test_records_may_lack_a_response_or_a_pair(load):
    found = load([
        {"prompt": "a", "response": "x"},
        {"prompt": "b", "chosen": "y", "rejected": "z"},
        {"prompt": "c", "chosen": "y"},
        {"prompt": "d"},
        {"response": "nobody asked"},
        {"prompt": "a", "response": "again"},
    ])  # fmt: skip
    assert found.train.prompts == ["a", "b", "c", "d"]
    assert [(d.prompt, d.response) for d in found.train.demonstrations] == [
        ("a", "x"), ("b", "y"), ("c", "y"), ("a", "again"),
    ]  # fmt: skip
    assert found.train.comparisons == [Comparison("b", "y", "z")]


def test_columns_can_have_other_names(make_config, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"frage": "Why?", "antwort": "Because.", "gut": "So.", "schlecht": "No."}])
    config = make_config(
        "data=files", "data.columns.prompt=frage", "data.columns.response=antwort", "data.columns.chosen=gut",
        "data.columns.rejected=schlecht", f"data.files.train={path}", f"data.files.heldout={path}",
    )  # fmt: skip
    found = load_dataset(config).train
    assert found.demonstrations == [Demonstration("Why?", "Because.")]
    assert found.comparisons == [Comparison("Why?", "So.", "No.")]


def test_a_missing_prompt_column_is_named_with_those_there_are(load):
    with pytest.raises(ConfigError, match=r"^data\.columns\.prompt=prompt: no row has it \(found: question, response\); "):
        load([{"question": "Why?", "response": "Because."}])


def test_a_file_of_an_unknown_type_is_refused(load, tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("Why?")
    with pytest.raises(ConfigError, match=r"^data\.files\.train=.*train\.txt: .*; give one of .*\.jsonl"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", b"this is no JSON\n"),
        ("late.jsonl", b'{"prompt": "a", "response": "b"}\noops\n'),
        ("cut.jsonl", b'{"prompt": "a", "resp'),
        ("empty.jsonl", b""),
        ("blank.jsonl", b"\n\n"),
        ("header.csv", b"prompt,response\n"),
        ("empty.csv", b""),
        ("binary.csv", bytes(range(256))),
        ("broken.parquet", b"PAR1 and no more"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(load, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"data.files.train={path}: ")
    assert "\n" not in message
