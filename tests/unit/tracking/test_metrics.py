import ast
import re
from itertools import chain
from pathlib import Path

import pytest

import rlhf
from rlhf.catalog.metric import MACHINE_GROUPS, MEANS, METRICS, NEWS, check_names, final_metrics
from rlhf.tracking.throughput import throughput_metrics

ROOT = Path(rlhf.__file__).parent
GROUPS = sorted({name.split("/")[0] for name in METRICS})
NAME = re.compile(rf"({'|'.join(GROUPS)})/\w+")


def trees():
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))]


def test_known_names_pass_and_unknown_ones_are_named():
    check_names(dict.fromkeys(METRICS, 0.0))
    with pytest.raises(KeyError, match=r"metrics without an entry.*: policy/lose, reward/meen"):
        check_names({"reward/mean": 0.0, "reward/meen": 0.0, "policy/lose": 0.0})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_group_a_unit_and_a_meaning(name):
    assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", name)
    metric = METRICS[name]
    assert metric.name == name and isinstance(metric.unit, str)
    assert len(metric.description.split()) >= 2


def test_a_metric_that_people_are_shown_has_a_label_of_its_own_and_a_better_direction_that_is_one():
    shown = [m for m in METRICS.values() if m.final or m.panels or m.speed or m.name in (*NEWS, *chain(*MEANS))]
    assert [metric.name for metric in shown if not metric.label] == []
    labels = [metric.label for metric in METRICS.values() if metric.label]
    assert sorted(labels) == sorted(set(labels))
    for columns in [final_metrics(detail) for detail in range(3)]:
        assert len({metric.heading for metric in columns}) == len(columns)
    assert {metric.better for metric in METRICS.values()} == {-1, 0, 1}
    assert {metric.per for metric in METRICS.values() if metric.per} <= set(METRICS)


def test_no_other_file_has_a_label_of_the_table():
    labels = {text for metric in METRICS.values() for text in (metric.label, metric.short) if len(text.split()) > 1}
    found = {
        (str(path), node.value)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in labels and path.name != "metric.py"
    }
    assert found == set()


def test_tables_with_less_room_show_some_of_what_those_with_more_show():
    sweep, report, run = (final_metrics(detail) for detail in range(3))
    assert set(sweep) < set(report) < set(run)


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
    check_names(figures)
    assert {name.split("/")[1].removeprefix(f"{phase}_"): value for name, value in figures.items()} == {
        "samples_per_s": 2.0,
        "tokens_per_s": 25.0,
        "tflops_per_gpu": pytest.approx(0.2),
        "mfu": pytest.approx(1.0),  # of 0.2 TFLOP/s
    }


def test_figures_of_the_machine_are_in_groups_of_their_own():
    assert set(MACHINE_GROUPS) == {"time", "throughput", "memory"} <= set(GROUPS)
