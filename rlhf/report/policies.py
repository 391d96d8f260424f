"""The page of evaluated policies: their metrics, who wins against whom, and their answers beside each other."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.config.pages import make_environment
from rlhf.config.terminal import make_printable, plural
from rlhf.evaluation.beside import Beside, align_answers
from rlhf.evaluation.prompts import LANGUAGES
from rlhf.evaluation.report import Report, build_report, declared_metrics, describe_pair, label_of, write
from rlhf.experiment.files import parse_json
from rlhf.experiment.lineage import read_maker
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.store import write_atomic
from rlhf.report.samples import shorten

# Prompts whose answers the page shows, at most.
SHOWN = 100


def write_policies_page(report: Report, answers: Iterable[Beside]) -> str:
    """Return the evaluations of policies as one HTML document that needs nothing else."""
    models, known = report.models, report.known
    names = declared_metrics(dict.fromkeys(name for model in models for name in model.metrics), known)
    rows = [(label_of(n, known), [write(model.metrics.get(n), known.get(n)) for model in models]) for n in names]
    firsts = [beside for beside in answers if beside.sample == 0]
    context: dict[str, Any] = {
        "models": [model.name for model in models],
        "metrics": rows,
        "pairs": [describe_pair(pair) for pair in report.pairs],
        "prompts": [show_prompt(beside) for beside in islice(firsts, SHOWN)],
        "dropped": max(model.dropped for model in models),
        "told": plural(len(firsts), "prompt", ","),
        "shown": SHOWN if len(firsts) > SHOWN else None,
    }
    return make_environment(Path(__file__).parent).get_template("policies.html").render(context)


def write_stage_page(directory: StageDirectory) -> None:
    """Write the page of the policy that a stage has evaluated into its directory."""
    path = str(parse_json(directory.spec_file.read_text())["inputs"]["actor"])
    maker = read_maker(path)
    name = Path(path).name if maker is None else maker.name
    report = build_report([name], [directory])
    write_atomic(directory.page, write_policies_page(report, align_answers([(name, report.models[0].rows)])))


def show_prompt(beside: Beside) -> dict[str, Any]:
    """Return what the template shows of a prompt."""
    answers = [
        {
            "who": name,
            "text": make_printable(shorten(row["response"].strip())),
            **{key: row[key] for key in ("score", "gold", "ended")},
        }
        for name, row in beside.answers.items()
    ]
    return {
        "text": make_printable(shorten(beside.prompt)),
        "language": LANGUAGES.get(str(beside.meta.get("language"))),
        "answers": answers,
    }
