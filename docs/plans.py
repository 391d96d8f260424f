"""Make docs/plans.md, the tables of hardware, models, hours and prices: python docs/plans.py."""

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf.cli.tables import fit_table, largest_table, published_table
from rlhf.planner.published import BENCHMARK

PAGE = Path(__file__).with_name("plans.md")
TEXT = """# Hours and prices

These tables are made by `python docs/plans.py`, from the plan alone: but for the published hours no GPU has measured them.
Main memory is counted as torch 2.13 takes it (docs/memory.md). Prices are those of `conf/hardware`, each with its source
and date there. The recipe is DeepSpeed-Chat's benchmark of step 3 (`{benchmark}`): 264,292 prompts, once.

## DeepSpeed-Chat's published hours beside planned ones

    python -m rlhf plan --published

{published}

## Hardware by model

    python -m rlhf plan --fit {benchmark} model=opt-13b

{fit}

## The largest models of a GPU

    python -m rlhf plan --largest {benchmark} hardware=a100-80g

{largest}
"""
MODELS = ("opt-1.3b", "opt-13b", "opt-66b")
GPUS = ("v100-32g", "a6000", "a100-40g", "a100-80g", "h100", "h200")


def main() -> None:
    """Write the page."""
    fits = [section(model, fit_table([BENCHMARK, f"model={model}"])) for model in MODELS]
    largest = [section(name, largest_table([BENCHMARK, f"hardware={name}"])) for name in GPUS]
    text = TEXT.format(
        benchmark=BENCHMARK, published=write(published_table([])), fit="\n\n".join(fits), largest="\n\n".join(largest)
    )
    PAGE.write_text(text)


def section(title: str, table: Table) -> str:
    """Return a table under a heading."""
    return f"### {title}\n\n{write(table)}"


def write(table: Table) -> str:
    """Return a table as Markdown."""
    headings = [str(column.header) for column in table.columns]
    console = Console(width=400, file=io.StringIO())
    cells = [[console.render_str(str(cell)).plain for cell in column.cells] for column in table.columns]
    rows = [f"| {' | '.join(row)} |" for row in zip(*cells, strict=True)]
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    return "\n".join([f"| {' | '.join(headings)} |", f"|{'|'.join(marks)}|", *rows])


if __name__ == "__main__":
    main()
