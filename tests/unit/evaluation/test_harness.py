"""Tasks of lm-evaluation-harness: what is asked of it, what its results are called, what cannot be asked. The harness is
a stand-in with its interface."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rlhf.config.errors import ConfigError
from rlhf.evaluation import harness
from rlhf.experiment.fingerprint import fingerprint
from rlhf.experiment.graph import build_graph
from rlhf.experiment.plan import GraphPlan, list_uncounted
from rlhf.experiment.sweep import Point, build_task_graph

RESULTS = {
    "results": {
        "mine": {"alias": "mine", "acc,none": 0.75, "acc_stderr,none": 0.1, "sample_len": 4},
        "gsm8k": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A", "bleu,none": 1},
    },
    "n-samples": {"mine": {"original": 9, "effective": 4}},
}


@pytest.fixture
def asked(monkeypatch):
    """What the stand-in was asked."""
    found = {}

    def simple_evaluate(model, **keys):
        found.update(model=model, **keys)
        if keys["limit"] == 0:
            raise ConnectionError("no network")
        return RESULTS

    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models.huggingface")}
    modules["lm_eval"].simple_evaluate = simple_evaluate
    modules["lm_eval.models.huggingface"].HFLM = SimpleNamespace
    modules["lm_eval.tasks"].TaskManager = lambda include_path: SimpleNamespace(
        all_tasks=["mine", "gsm8k"], paths=include_path
    )
    modules["lm_eval.tasks"].get_task_dict = lambda names, manager: simple_evaluate(None, limit=0)
    modules["lm_eval.models"] = ModuleType("lm_eval.models")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness, "version", lambda package: "0.4.13")
    return found


@pytest.fixture
def task(tmp_path):
    """The file of a task."""
    path = tmp_path / "one.yaml"
    path.write_text("tag: x\ntask: mine  # my own\ndataset_path: json\n")
    return str(path)


def test_results_have_their_own_names_with_errors_and_numbers(asked, task):
    found = harness.evaluate_tasks("model", "tokenizer", [task, "gsm8k"], 8, 4, 3)
    assert asked["tasks"] == ["mine", "gsm8k"] and asked["limit"] == 4 and asked["fewshot_random_seed"] == 3
    assert vars(asked["model"]) == {
        "pretrained": "model", "tokenizer": "tokenizer", "backend": "causal", "batch_size": 8,
    }  # fmt: skip
    assert found["version"] == "0.4.13" and found["metrics"] == {
        "lm_eval/mine/acc": {"mean": 0.75, "se": 0.1, "n": 4},
        "lm_eval/gsm8k/exact_match_strict-match": {"mean": 0.5, "se": None, "n": None},
        "lm_eval/gsm8k/bleu": {"mean": 1.0, "se": None, "n": None},
    }
    assert set(harness.flatten(found)) == {*found["metrics"], "lm_eval/mine/acc_se"}
    assert harness.declare("lm_eval/mine/acc").label == "mine acc"


def test_what_cannot_be_asked_is_told(asked, task, tmp_path, monkeypatch):
    (tmp_path / "two.yaml").write_text("dataset_path: json\n")
    monkeypatch.setattr(harness, "find_spec", lambda package: None)
    problems = list(map(str, harness.find_problems(["gsm8k", task, "none.yaml", str(tmp_path / "two.yaml")])))
    assert "it needs the package lm-eval; pip install 'rlhf[lm-eval]'" in problems[0]
    assert "none.yaml: there is no such file" in problems[1] and "it has no line `task: NAME`" in problems[2]
    assert len(problems) == 3 and not list(harness.find_problems([]))
    with pytest.raises(ConfigError, match=r"lm_eval=nosuch: lm-eval 0\.4\.13 has no such task"):
        harness.open_tasks(["nosuch"])
    with pytest.raises(ConfigError, match="the data of a task cannot be loaded"):
        harness.evaluate_tasks("model", "tokenizer", ["gsm8k"], 8, 0, 3)
    with pytest.raises(ConfigError, match=r"the data of a task cannot be loaded \(no network\)"):
        harness.load_data(["gsm8k"])


def test_a_plan_says_that_the_time_of_tasks_is_not_counted(make_config, tmp_path):
    config = make_config("stages=[sft,reward,evaluate]", f"output_root={tmp_path}")
    for tasks, told in (([], []), (["gsm8k", "mine"], ["lm-eval tasks (gsm8k, mine): their time is not counted"])):
        config.evaluate.lm_eval = tasks
        (*_, task) = build_task_graph([Point(config, [], tmp_path / "run", False, build_graph(config))])
        assert list_uncounted(GraphPlan([], [task], frozenset({task.key}), {})) == told


def test_tasks_count_by_name_and_files_by_content(make_config, task):
    config = make_config("stages=[sft,evaluate]")
    found = []
    for tasks in ([], ["gsm8k"], [task], ["gsm8k", task]):
        config.evaluate.lm_eval = tasks
        found.append(fingerprint(config, "evaluate", {"actor": "x"}))
    with open(task, "a") as stream:
        stream.write("num_fewshot: 1\n")
    assert len({*found, fingerprint(config, "evaluate", {"actor": "x"})}) == 5
