"""Whatever the files of a stage or a point hold: the report, the status and the summary name it and end as they should."""

import contextlib
import io
import json
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.fake_sweep import FakeSweep, answer, step

from rlhf.cli import status
from rlhf.cli.report import main as report
from rlhf.config.terminal import Terminal, make_printable, strip_colours
from rlhf.experiment.graph import Node
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.summary import print_summary
from rlhf.experiment.sweep import Outcome, Point
from rlhf.experiment.sweep_table import print_sweep
from rlhf.report import page

NAMES = ("result.json", "status.json", "metrics.jsonl", "samples.jsonl", "environment.json", "summary.json", "config.yaml")
KEYS = (
    "stage", "fingerprint", "seconds", "metrics", "state", "reason", "step", "total", "attempts", "heartbeat", "host",
    "job", "time", "reward/mean", "eval/gold", "eval/kl_sequence", "prompt", "sft", "ppo", "sft_score", "ppo_gold",
    "stages", "overrides", "directory", "log", "hardware", "gpu", "gpus", "packages", "git", "commit", "seed", "point",
)  # fmt: skip
NUMBERS = st.sampled_from([0, -1, 3, 1.5, 1e308, -1e308, 5e-324, 10**400, 2**63, float("nan"), float("inf"), True])
TEXTS = st.one_of(
    st.sampled_from(["done", "running", "ppo-000000000001", "\x1b[2J\x00", "\ud800", "x" * 3000, ""]), st.text()
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=10)


@st.composite
def contents(draw):
    """The bytes of a file: lines of JSON, whole or cut, deeply nested, or no text at all."""
    lines = [json.dumps(value) for value in draw(st.lists(st.one_of(OBJECTS, OBJECTS, VALUES), min_size=1, max_size=4))]
    data = "\n".join(lines).encode()
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "deep", "deep value", "bytes", "long number"]))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))]
    deep = draw(st.sampled_from(["[", '{"metrics":', '{"a":[']))
    return {
        "whole": data,
        "deep": deep.encode() * 50_000,
        "deep value": b'{"reason": ' + b"[" * 800 + b"]" * 800 + b', "state": "failed", "step": 1}\n',
        "bytes": draw(st.binary(max_size=40)),
        "long number": b'{"step": 1, "time": ' + b"9" * 5000 + b"}\n",
    }[kind]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A sweep of one finished point."""
    sweep = FakeSweep(tmp_path_factory.mktemp("pristine"))
    lines = [step(1, 0.1), step(2, 0.2, gold=1.0)]
    metrics = {"eval/gold": 1.0, "eval/kl_sequence": 2.0, "eval/reward": 1.0}
    stages = [
        sweep.stage("sft", 1, {"eval/perplexity": 1.5}),
        sweep.stage("ppo", 1, metrics, lines=lines, samples=[answer("p", 2), answer("q", 2)]),
    ]
    sweep.point(stages, name="a")
    return sweep


def damage(pristine, place, files):
    """A copy of the sweep with some files replaced; returns its point's directory."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine.root, place, symlinks=True)
    point = place / "sweeps" / pristine.place.name / "a"
    for name, content in files.items():
        (
            point / name if name in ("summary.json", "config.yaml") else place / "stages" / f"ppo-{1:012x}" / name
        ).write_bytes(content)
    return point


def check(point):
    """Run the three, and look at what they print and write."""
    root = point.parents[2]
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        assert report([str(point.parent)]) == 0
        assert status.main([str(root), "--once"]) == 0
        assert status.main([str(root), "--json"]) == 0
    stages = [StageDirectory(root / "stages" / f"{kind}-{1:012x}") for kind in ("sft", "ppo")]
    nodes = [Node(stage.path.name[:-13], stage.path.name, stage, {}, ()) for stage in stages]
    outcomes = {node.fingerprint: Outcome("done") for node in nodes}
    print_summary(nodes, outcomes, Terminal(file=stream))
    print_sweep([Point(None, [], point, True, nodes)], outcomes, Terminal(file=stream))
    said = strip_colours(stream.getvalue())
    assert make_printable(said) == said
    for file in (point.parent / "report").iterdir():
        text = file.read_text(encoding="utf-8")
        assert make_printable(text) == text
    json.loads((point.parent / "report" / "points.json").read_text())


@settings(max_examples=12)
@given(files=st.dictionaries(st.sampled_from(NAMES), contents(), min_size=1, max_size=3))
@example(files={"metrics.jsonl": b'{"step": 1, "time": 1e308, "reward/mean": 0.5}\n{"step": 2, "time": 1.0}\n'})
@example(files={"result.json": b'{"stage": [], "fingerprint": 1, "seconds": "x", "metrics": {"eval/gold": [1]}}'})
@example(files={"result.json": b"[" * 100_000})
@example(files={"samples.jsonl": b'{"step": 2, "prompt": "p", "sft": "a", "ppo": "b"}\n{"step": 2, "pro'})
@example(files={"samples.jsonl": b'{"step": 2, "prompt": "\\u001b[2J\\u0000", "sft": 3, "ppo": null, "sft_score": "x"}\n'})
@example(
    files={"status.json": b'{"state": "failed", "reason": "\\u001b]0;x\\u0007", "host": "\\u0000"}', "result.json": b"{"}
)
def test_damaged_files_end_in_no_traceback(pristine, tmp_path_factory, files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_svg", lambda drawing: "")  # which takes most of the time
        check(damage(pristine, tmp_path_factory.getbasetemp() / "damaged", files))


@pytest.mark.slow
@settings(max_examples=60)
@given(files=st.dictionaries(st.sampled_from(NAMES), contents(), min_size=1, max_size=3))
def test_many_damaged_files_end_in_no_traceback(pristine, tmp_path_factory, files):
    check(damage(pristine, tmp_path_factory.getbasetemp() / "damaged", files))


def test_the_damage_is_named(pristine, tmp_path):
    point = damage(pristine, tmp_path / "damaged", {"result.json": b'{"stage": "ppo", "metrics": {"eval/gold": "high"}}'})
    stage = StageDirectory(point.parents[2] / "stages" / f"ppo-{1:012x}")
    with pytest.raises(ValueError, match=r"result\.json cannot be read \(it does not hold exactly stage"):
        stage.result()
    node, stream = Node("ppo", "f", stage, {}, ()), io.StringIO()
    print_summary([node], {"f": Outcome("done")}, Terminal(file=stream, width=300))
    assert "damaged: " in stream.getvalue() and "result.json cannot be read" in stream.getvalue()
    (stage.path / "result.json").write_text(
        '{"stage": "ppo", "fingerprint": "f", "seconds": 1, "metrics": {"eval/gold": "high"}}'
    )
    with pytest.raises(ValueError, match="eval/gold is of the wrong type"):
        stage.result()
