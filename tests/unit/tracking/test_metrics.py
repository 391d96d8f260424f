import ast
import json
import re
from itertools import chain
from pathlib import Path

import pytest

import rlhf
from rlhf.catalog.display import display_of, from_json, to_json
from rlhf.catalog.metric import MACHINE_GROUPS
from rlhf.catalog.stage import check_metrics, known_metrics, metrics_of, stage_kinds
from rlhf.tracking.throughput import throughput_metrics

ROOT = Path(rlhf.__file__).parent
METRICS = known_metrics()
DISPLAYS = {stage: display_of(stage) for stage in stage_kinds()}
GROUPS = sorted({name.split("/")[0] for name in METRICS})
NAME = re.compile(rf"({'|'.join(GROUPS)})/\w+")


def trees():
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))]


def test_known_names_pass_and_unknown_ones_are_named():
    check_metrics("ppo", {"reward/mean": 0.0, "time/step_s": 1.0, "eval/gold_se": 0.1})
    with pytest.raises(KeyError, match=r"stage ppo does not declare.*: policy/lose, reward/meen"):
        check_metrics("ppo", {"reward/mean": 0.0, "reward/meen": 0.0, "policy/lose": 0.0})
    with pytest.raises(KeyError, match=r"stage sft does not declare.*: reward/mean"):
        check_metrics("sft", {"reward/mean": 0.0, "train/loss": 0.0})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_group_a_unit_and_a_meaning(name):
    assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", name)
    metric = METRICS[name]
    assert metric.name == name and isinstance(metric.unit, str)
    assert len(metric.description.split()) >= 2


def test_a_metric_that_people_are_shown_has_a_label_of_its_own_and_a_better_direction_that_is_one():
    for stage, display in DISPLAYS.items():
        named = (*display.headline, *chain(*display.compared))
        assert set(named) <= set(metrics_of(stage))
        shown = [m for m in display.metrics.values() if m.final or m.axis or m.speed or m.name in named]
        assert [metric.name for metric in shown if not metric.label] == []
    labels = {(metric.label, metric.name) for metric in METRICS.values() if metric.label}
    assert len({label for label, _ in labels}) == len(labels)
    for detail in range(3):
        columns = {(metric.heading, metric.name) for display in DISPLAYS.values() for metric in display.final(detail)}
        assert len({heading for heading, _ in columns}) == len(columns)  # several stages may have one metric
    assert {metric.better for metric in METRICS.values()} == {-1, 0, 1}
    assert {metric.per for metric in METRICS.values() if metric.per} <= set(METRICS)


def test_no_other_file_has_a_label_of_the_table():
    labels = {text for metric in METRICS.values() for text in (metric.label, metric.short) if len(text.split()) > 1}
    found = {
        (str(path), node.value)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in labels and path.parts[0] not in ("catalog", "stages")
    }
    assert found == set()


def test_tables_with_less_room_show_some_of_what_those_with_more_show():
    sweep, report, run = ({m for display in DISPLAYS.values() for m in display.final(detail)} for detail in range(3))
    assert sweep < report < run


@pytest.mark.parametrize("stage", DISPLAYS)
def test_what_a_stage_is_shown_by_survives_its_file(stage):
    assert from_json(json.loads(json.dumps(to_json(DISPLAYS[stage])))) == DISPLAYS[stage]


def test_a_file_cannot_ask_for_a_format_that_floods_the_terminal_nor_break_a_reader():
    entry = {"name": "a/b", "unit": "", "description": "a metric", "format": "{:>999999999}"}
    damaged = [entry, None, {"name": 3}, entry | {"format": "{:.2f}", "better": "up"}, entry | {"colour": "red"}]
    others = {"headline": "a/b", "sides": [{"key": 1}], "compared": [3, ["a/b", 4]], "step": 0}
    found = from_json({"metrics": damaged} | others)
    assert found.metrics == {} and found.headline == () and found.sides == () and found.step == "step"
    assert found.compared == ((), ("a/b",))


def test_every_name_written_in_the_package_is_in_the_table():
    """Whole strings of the form group/name; the table itself is made of them, and a misspelled one shows here."""
    found = {
        (str(path), node.value)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value)
    }
    assert len({name for _, name in found}) > 40
    assert sorted((path, name) for path, name in found if name not in METRICS) == []


def test_every_name_put_together_in_the_package_can_be_in_the_table():
    """f"time/{phase}_s" must be able to give a name that the table has."""
    patterns = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in node.values]
                if re.match(rf"({'|'.join(GROUPS)})/", parts[0]) or re.match(r"/[a-z]", parts[1] if parts[1:] else ""):
                    patterns.append((str(path), "".join(parts)))
    assert patterns
    for path, pattern in patterns:
        if not pattern.endswith("_"):  # a prefix, as in throughput/{phase}_
            assert any(re.fullmatch(pattern, name) for name in METRICS), (path, pattern)


@pytest.mark.parametrize("phase", ["", "rollout", "score", "train"])
def test_throughput_of_every_phase_is_in_the_table(make_config, phase):
    config = make_config("hardware=cpu")
    config.hardware.gpus_per_node = 2
    figures = throughput_metrics(config, phase, seconds=4.0, samples=8, tokens=100, flops=1.6e12)
    check_metrics("bench", figures)
    assert {name.split("/")[1].removeprefix(f"{phase}_"): value for name, value in figures.items()} == {
        "samples_per_s": 2.0,
        "tokens_per_s": 25.0,
        "tflops_per_gpu": pytest.approx(0.2),
        "mfu": pytest.approx(1.0),  # of 0.2 TFLOP/s
    }


def test_figures_of_the_machine_are_in_groups_of_their_own():
    assert set(MACHINE_GROUPS) == {"time", "throughput", "memory"} <= set(GROUPS)
