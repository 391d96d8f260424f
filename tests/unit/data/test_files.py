"""Files of records are read as they are written, or refused with the row and the column. No type is guessed."""

import datetime
import gzip
import json
import shutil

import pyarrow
import pytest
from pyarrow import parquet

from rlhf.config.errors import ConfigError
from rlhf.config.inputs import check_inputs
from rlhf.data.dataset import Comparison, Demonstration
from rlhf.data.files import expect_hashes
from rlhf.data.records import load_dataset
from rlhf.experiment.fingerprint import data_files

ROWS = [{"prompt": f"q{i}", "response": f"a{i}", "chosen": f"c{i}", "rejected": f"x{i}"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def load(make_config, tmp_path):
    """Load the training records of a file; the held-out file is a good one."""
    (tmp_path / "heldout.jsonl").write_text(LINES)

    def run(path):
        config = make_config("data=files")
        config.data.files.train, config.data.files.heldout = str(path), str(tmp_path / "heldout.jsonl")
        return load_dataset(config).train

    return run


@pytest.fixture
def refused(load):
    """The one line that is said of a file."""

    def run(path):
        with pytest.raises(ConfigError) as error:
            load(path)
        message = str(error.value)
        assert message.startswith(f"data.files.train={path}: ") and "\n" not in message
        return message.partition(": ")[2]

    return run


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["train[1].jsonl", "star*.jsonl", "run [a]/q?.jsonl", "a b.jsonl", "{x,y}.jsonl"])
def test_a_path_is_the_file_of_that_name(load, tmp_path, name):
    for other in ("train1.jsonl", "starfish.jsonl", "x.jsonl", "y.jsonl"):
        write(tmp_path / other, '{"prompt": "wrong"}\n')
    assert load(write(tmp_path / name, LINES)).prompts == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize(
    "text", ["2024-01-01", "2024-01-01T00:00:00", "0", "1.0", "true", "null", "NA", "nan", "", " x ", "1e5"]
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_text_stays_as_it_is_written(load, tmp_path, suffix, text):
    """In whole columns of it, where a library would guess a date, a number or a missing cell."""
    rows = [{"prompt": f"q{i}", "response": text, "chosen": f"c{i}", "rejected": "x"} for i in range(3)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "csv":
        write(path, "prompt,response,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        write(path, json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    missing = suffix == "csv" and not text  # an empty cell of a CSV file is no text
    assert load(path).demonstrations == [Demonstration(f"q{i}", f"c{i}" if missing else text) for i in range(3)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, "a number"), (7, "a number"), (0.5, "a number"), (False, "true or false"), (True, "true or false"),
        ({"a": 1}, "an object"), ([], "a list"), (["q", "a"], "a list"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["prompt", "response", "chosen", "rejected"])
def test_what_is_no_text_is_refused_with_row_column_and_type(refused, tmp_path, column, value, kind):
    """Also where the first rows are text."""
    path = write(tmp_path / "a.jsonl", LINES + json.dumps({**ROWS[0], column: value}) + "\n")
    assert refused(path).startswith(f"row 5, column {column}: it is {kind}, not text; write it as text")


@pytest.mark.parametrize("value", [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), b"bytes", 3, ["q", "a"]])
def test_types_of_a_parquet_file_are_refused_alike(refused, tmp_path, value):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "q", "response": value}]), path)
    assert refused(path).startswith("row 1, column response: it is ")


def test_null_alone_is_missing_and_what_is_left_out_is_counted(load, tmp_path):
    rows = [{"prompt": "q", "response": None}, {"prompt": None, "response": "a"}, {"prompt": "p", "rejected": "x"}]
    found = load(write(tmp_path / "a.jsonl", LINES + "\n".join(map(json.dumps, rows))))
    assert len(found.prompts) == 6 and len(found.demonstrations) == len(found.comparisons) == 4
    assert found.left_out == {"rows without a prompt": 1, "rejected answers without a chosen one": 1}


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("crlf.jsonl", LINES.replace("\n", "\r\n"), 4),
        ("blank.jsonl", LINES.replace("\n", "\n\n"), 4),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode(), 4),
        ("bom.csv", b"\xef\xbb\xbfprompt,response\r\nq,a\r\n", 1),
        ("cut.jsonl", LINES.rstrip("\n"), 4),
        ("array.jsonl", json.dumps(ROWS), 4),
        ("array.json", json.dumps(ROWS, indent=1), 4),
        ("lines.json", LINES, 4),
        ("CAPITALS.JSONL", LINES, 4),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), 4),
        ("packed.jsonl.zst", pyarrow.compress(LINES.encode(), codec="zstd", asbytes=True), 4),
        ("a.tsv", "prompt\tresponse\nq, a\ta\n", 1),
        ("one.json", json.dumps({"type": "text2text", "instances": [{"input": "q", "output": "a"}]}, indent=1), 1),
        ("packed.CSV.GZ", gzip.compress(b"prompt,response\nq,a\n", mtime=0), 1),
    ],
)
def test_every_usual_way_to_write_a_file_is_read(load, tmp_path, name, content, prompts):
    assert len(load(write(tmp_path / name, content)).prompts) == prompts


@pytest.mark.parametrize("text", ["a\u2028b\u2029c\x85d", "a\0b", "你好👩‍👩‍👧", 'a, "quoted"\nq'])
def test_every_character_is_kept(load, tmp_path, text):
    row = {"prompt": text, "response": text, "chosen": text, "rejected": "x"}
    for escaped in (True, False):
        path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=escaped) + "\n" + LINES)
        found = load(path)
        assert found.prompts[0] == text and found.comparisons[0] == Comparison(text, text, "x")
    if "\0" not in text:
        quoted = '"' + text.replace('"', '""') + '"'
        assert load(write(tmp_path / "a.csv", f"prompt,response\n{quoted},b\n")).prompts == [text]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mid.jsonl", '{"prompt": "a"}\n\n{"prompt": oops}\n', "row 3: it is no JSON"),
        ("cut.jsonl", LINES[:-9], "row 4: it is no JSON"),
        ("twice.jsonl", '{"prompt": "a", "prompt": "b"}', "row 1: it is no JSON, a key stands twice: prompt, prompt"),
        ("nan.jsonl", '{"prompt": NaN}', "row 1: it is no JSON, NaN is no JSON number"),
        ("deep.jsonl", '{"prompt": ' + "[" * 100_000, "row 1: it is no JSON"),
        ("latin.jsonl", LINES.encode() + b'{"prompt": "caf\xe9"}', "row 5: it is not UTF-8"),
        ("utf16.jsonl", LINES.encode("utf-16"), "row 1: it is not UTF-8"),
        ("half.jsonl", '{"prompt": "hi \\ud83d"}', "row 1, column prompt: it holds half a character"),
        ("list.jsonl", "1\n", "row 1: it is a number, not an object"),
        ("nul.jsonl", LINES + "\0\n", "row 5: it is no JSON"),
        ("ragged.csv", "prompt,response\nq,a\nq,a,extra\n", "row 2 has 3 cells, its header 2"),
        ("open.csv", 'prompt,response\n"q,a\n', "it is no CSV"),
        ("twice.csv", "prompt,prompt\nq,a\n", "two columns have one name"),
        ("empty.jsonl", "", "it is empty"),
        ("header.csv", "prompt,response\n", "it is empty"),
        ("broken.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-20], "it cannot be read"),
        ("plain.jsonl.gz", LINES, "it is not compressed with gzip"),
        ("zip.jsonl", b"PK\x03\x04....", "it is compressed (zip), and its name does not say so; unpack it"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_row(refused, tmp_path, name, content, said):
    assert said in refused(write(tmp_path / name, content))


def test_an_archive_under_a_plain_name_is_not_unpacked_until_it_is_renamed(load, refused, tmp_path):
    path = write(tmp_path / "a.jsonl", gzip.compress(LINES.encode(), mtime=0))
    assert "rename it to a.jsonl.gz" in refused(path)
    assert len(load(shutil.move(path, tmp_path / "a.jsonl.gz")).prompts) == 4


def test_an_archive_that_unpacks_without_end_is_left_at_the_first_record(refused, tmp_path):
    path = write(tmp_path / "bomb.jsonl.gz", gzip.compress(b'{"prompt": "' + bytes(80 * 2**20), mtime=0))
    assert "row 1 is longer than 64 MiB" in refused(path)


def test_a_pattern_is_all_files_that_match_it_in_the_order_of_their_names(load, tmp_path):
    for name in ("b.jsonl", "a.csv", "sub/c.jsonl"):
        (tmp_path / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        content = f"prompt,response\n{name},a\n" if name.endswith("csv") else json.dumps({"prompt": name, "response": "a"})
        (tmp_path / "many" / name).write_text(content)
    assert load(tmp_path / "many" / "*.*").prompts == ["a.csv", "b.jsonl"]
    assert load(tmp_path / "many" / "**" / "*.jsonl").prompts == ["b.jsonl", "sub/c.jsonl"]


def test_a_fraction_of_one_file_is_held_out(make_config, tmp_path):
    rows = [{"prompt": f"q{i}", "response": "a"} for i in range(40)]
    config = make_config("data=files", "data.heldout_fraction=0.1")
    config.data.files.train = str(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    found = load_dataset(config)
    assert (len(found.train.prompts), len(found.heldout.prompts)) == (36, 4)
    assert {*found.train.prompts, *found.heldout.prompts} == {row["prompt"] for row in rows}
    config.seed += 1
    assert load_dataset(config).heldout.prompts != found.heldout.prompts


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.json"])
def test_what_is_hashed_is_what_is_read(make_config, tmp_path, name):
    """An edit between the plan and the reading, which no look at the file before it is read would see."""
    path, other = tmp_path / name, write(tmp_path / "heldout.jsonl", LINES)

    def save(rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith("parquet"):
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif name.endswith("csv"):
            write(path, "prompt,response,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in rows))
        else:
            write(path, gzip.compress(lines.encode(), mtime=0) if name.endswith("gz") else lines)

    save(ROWS)
    config = make_config("data=files")
    config.data.files.train, config.data.files.heldout = str(path), str(other)
    planned = data_files(config, "sft")
    with expect_hashes(planned):
        assert load_dataset(config).train.prompts == ["q0", "q1", "q2", "q3"]
        save([*ROWS[:3], {**ROWS[3], "response": "edited"}])
        with pytest.raises(ConfigError, match=rf"its hash was {planned['data.files.train'][:16]}, and is [0-9a-f]{{16}}"):
            load_dataset(config)
    assert load_dataset(config).train.demonstrations[3].response == "edited"


def test_several_files_are_one_set_in_their_order(make_config, tmp_path):
    first, second = (write(tmp_path / f"{name}.jsonl", f'{{"prompt": "{name}", "response": "x"}}\n') for name in "ba")
    config = make_config("data=files", f"data.files.train=['{first}','{second}']", f"data.files.heldout='{first}'")
    assert load_dataset(config).train.prompts == ["b", "a"]
    hashes = data_files(config, "sft")
    with expect_hashes(hashes):
        load_dataset(config)
    config.data.files.train = [str(second), str(first)]
    assert data_files(config, "sft")["data.files.train"] != hashes["data.files.train"]
    config.data.files.train = [str(second), f"{tmp_path}/a*.jsonl"]
    assert [str(problem) for problem in check_inputs(config)] == [
        f"data.files.train=[{second},{tmp_path}/a*.jsonl]: {second} is named twice; name each file once"
    ]


def test_a_directory_that_datasets_saved_is_read(load, refused, tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved", num_shards={"train": 2})
    assert load(tmp_path / "saved" / "train").prompts == ["q0", "q1", "q2", "q3"]
    assert refused(tmp_path / "saved") == f"it holds the splits train; give one of them, as {tmp_path}/saved/train"
    assert refused(tmp_path).startswith("it is a directory that no data set was saved to; give the files in it")
    with pyarrow.ipc.new_file(str(tmp_path / "file.arrow"), pyarrow.Table.from_pylist(ROWS).schema) as writer:
        writer.write_table(pyarrow.Table.from_pylist(ROWS))
    assert load(tmp_path / "file.arrow").prompts == ["q0", "q1", "q2", "q3"]
