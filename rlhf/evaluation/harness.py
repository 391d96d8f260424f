"""Tasks of EleutherAI's lm-evaluation-harness on a policy: the extra `lm-eval`, imported where tasks are asked for.

What they come to is lm_eval.json in the stage's directory: `version` of the harness, and `metrics`, {mean, se, n} by
`lm_eval/<task>/<metric>`, with `_<filter>` where the harness filters answers before it counts them.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf.catalog.metric import Metric
from rlhf.config.errors import ConfigError, first_line

KEY = "evaluate.lm_eval"
PACKAGE = "lm_eval"
FILE = "lm_eval.json"
PREFIX = "lm_eval/"
# What the harness calls metrics that no filter precedes, and what follows the name of a metric in that of its error.
UNFILTERED, ERROR = "none", "_stderr"
# The line of a task's file that names the task.
NAME = re.compile(r"^task:\s*['\"]?([^\s'\"#]+)", re.MULTILINE)


def find_problems(tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Find that the harness is not installed, and files of tasks that are not there. Imports neither it nor torch."""
    if tasks and find_spec(PACKAGE) is None:
        yield ConfigError(KEY, f"[{','.join(tasks)}]", "it needs the package lm-eval", "pip install 'rlhf[lm-eval]'")
    for task in filter(is_file_of_task, tasks):
        path = Path(task).expanduser()
        if not path.is_file() or NAME.search(path.read_text(encoding="utf-8")) is None:
            problem = "it has no line `task: NAME`" if path.is_file() else "there is no such file"
            yield ConfigError(KEY, task, problem, "give the name of a task, or the path of its .yaml file")


def is_file_of_task(task: str) -> bool:
    """Whether a task is given by its file."""
    return task.endswith(".yaml")


def name_task(task: str) -> str:
    """Return the name of a task, of a file the one that stands in it."""
    if not is_file_of_task(task):
        return task
    found = NAME.search(Path(task).expanduser().read_text(encoding="utf-8"))
    return task if found is None else found[1]


def open_tasks(tasks: Sequence[str]) -> Any:
    """Return the harness's manager of its own tasks and of those of files. Raises ConfigError for a task that it has
    not."""
    from lm_eval.tasks import TaskManager

    directories = dict.fromkeys(str(Path(task).expanduser().resolve().parent) for task in filter(is_file_of_task, tasks))
    manager = TaskManager(include_path=list(directories) or None)
    for task in tasks:
        if name_task(task) not in manager.all_tasks:
            fix = "`lm-eval ls tasks` lists them; or give the path of a task's .yaml file"
            raise ConfigError(KEY, task, f"lm-eval {version('lm-eval')} has no such task", fix)
    return manager


def load_data(tasks: Sequence[str]) -> None:
    """Load the data of tasks, so that it is on this machine. Raises ConfigError where there is no such task, or its data
    cannot be loaded."""
    from lm_eval.tasks import get_task_dict

    manager = open_tasks(tasks)
    try:
        get_task_dict([name_task(task) for task in tasks], manager)
    except OSError as error:
        raise describe_failure(tasks, error) from error


def describe_failure(tasks: Sequence[str], error: OSError) -> ConfigError:
    """Return the error of tasks whose data cannot be loaded."""
    problem = f"the data of a task cannot be loaded ({first_line(error)})"
    return ConfigError(KEY, f"[{','.join(tasks)}]", problem, "load it once where there is network, into the same HF_HOME")


def wrap_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return a model as the harness asks it, without its warnings of how else it could be given."""
    from lm_eval.models.huggingface import HFLM

    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    finally:
        logger.setLevel(level)


def evaluate_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], batch_size: int, limit: int | None, seed: int
) -> dict[str, Any]:
    """Return what the harness finds of a causal language model on some tasks, as lm_eval.json holds it.

    Args:
        model: The model, of `transformers`, on its device.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, or paths of their files.
        batch_size: Texts that are read at a time.
        limit: The first so many documents of each task; None for all.
        seed: The seed of the few-shot examples.

    Raises:
        ConfigError: The harness has no such task, or a task's data cannot be loaded.
    """
    from lm_eval import simple_evaluate

    manager, wrapped = open_tasks(tasks), wrap_model(model, tokenizer, batch_size)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    names = [name_task(task) for task in tasks]
    try:
        found = simple_evaluate(wrapped, tasks=names, limit=limit, log_samples=False, task_manager=manager, **seeds)
    except OSError as error:
        raise describe_failure(tasks, error) from error
    return {"version": version("lm-eval"), "metrics": dict(read_metrics(found))}


def read_metrics(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the metrics of the harness's results, by their names here: the mean, its standard error, and of how many
    documents it is, None where the harness does not say."""
    for task, own in found["results"].items():
        n = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in own.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith(ERROR) or not isinstance(value, int | float):
                continue
            error = own.get(f"{metric}{ERROR},{kind}")
            se = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            name = f"{PREFIX}{task}/{metric}" + ("" if kind == UNFILTERED else f"_{kind}")
            yield name, {"mean": float(value), "se": se, "n": n}


def flatten(stored: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of lm_eval.json as a stage's result has them: means, and errors under `<name>_se`."""
    metrics = {}
    for name, own in stored["metrics"].items():
        metrics[name] = own["mean"]
        metrics |= {} if own["se"] is None else {f"{name}_se": own["se"]}
    return metrics


def declare(name: str) -> Metric:
    """Return the declaration of a metric of the harness, which no stage knows beforehand."""
    label = name.removeprefix(PREFIX).replace("/", " ")
    return Metric(name, "", f"{label}, by lm-evaluation-harness", label, label, "{:.3f}", final=True, detail=1, error=True)
