"""What is shown of the data of stages: tables of counts and lengths, and the first records as a model reads them."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhf.catalog.stage import Counts, kind_of
from rlhf.data.check import describe_dropped

if TYPE_CHECKING:
    from rlhf.data.counted import Counted
    from rlhf.stages.reading import Sample, StageData

# How the parts of a record look: what is given, what is answered, and what the loss covers.
PROMPT, RESPONSE, LOSS = "cyan", "yellow", "bold green"


def data_notes(stages: Sequence["StageData"]) -> list[str]:
    """Return a line for each stage, and what is doubtful of the records."""
    from rlhf.stages.reading import reading_warnings

    return [*map(describe_stage_data, stages), *reading_warnings(stages)]


def describe_stage_data(found: "StageData") -> str:
    """Write in a line what a stage reads."""
    counted, data = found.train.counted, found.config.data
    name = name_records(found)
    prompt, response = (counted.tokens[part] for part in ("prompt", "response"))
    lengths = f"prompts of {prompt['median']:g} tokens (median; longest {prompt['max']:,})"
    if response["max"]:
        lengths += f", responses of {response['median']:g} ({response['max']:,})"
    cut = f", {counted.cut:,} cut at {data.max_response_tokens}" if counted.cut else ""
    dropped = f"; left out: {describe_dropped(counted.dropped)}" if counted.dropped else ""
    return f"{found.stage} reads {counted.items:,} {name}: {lengths}{cut}{dropped}"


def name_records(found: "StageData") -> str:
    """Return what the training records of a stage are called."""
    records = kind_of(found.stage).records
    return "records" if records is None else records(found.config, Counts(0, 0, 0, 0)).name


def print_data(stages: Sequence["StageData"], samples: int, console: Console) -> None:
    """Print the counts and the lengths of all stages, then the first records of each."""
    from rlhf.stages.reading import first_samples

    console.print(count_table(stages))
    console.print()
    console.print(length_table(stages))
    for found in stages:
        for where, part in (("training", found.train), ("held out", found.heldout)):
            if part.counted.dropped:
                told = f"{found.stage}, {where}, left out: {describe_dropped(part.counted.dropped)}"
                console.print(told, soft_wrap=not console.is_terminal)
    if samples:
        console.print()
        console.print(Text.assemble("parts of a record: ", ("prompt", PROMPT), ", ", ("response", RESPONSE), ", ",
                                    ("trained on", LOSS)))  # fmt: skip
    for found in stages:
        for sample in first_samples(found, samples):
            print_sample(sample, found, console)


def count_table(stages: Sequence["StageData"]) -> Table:
    """Return how many records stages read, keep and drop, and how many steps follow."""
    table = Table("stage", "part", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("read", "kept", "dropped", "cut", "steps"):
        table.add_column(name, justify="right")
    for found in stages:
        for where, counted, steps in parts_of(found):
            numbers = (counted.read, counted.kept, sum(counted.dropped.values()), counted.cut)
            table.add_row(found.stage if steps else "", where, *(f"{number:,}" for number in numbers), steps)
    return table


def length_table(stages: Sequence["StageData"]) -> Table:
    """Return the lengths of prompts and responses, in tokens."""
    table = Table("tokens", "part", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for text in ("prompt: median", "95 %", "max", "response: median", "95 %", "max"):
        table.add_column(text, justify="right")
    for found in stages:
        for where, counted, steps in parts_of(found):
            lengths = [counted.tokens[part] for part in ("prompt", "response")]
            cells = [f"{part[name]:,.0f}" if part["max"] else "" for part in lengths for name in ("median", "p95", "max")]
            table.add_row(found.stage if steps else "", where, *cells)
    return table


def parts_of(found: "StageData") -> Iterator[tuple[str, "Counted", str]]:
    """Yield the parts of a stage's data: the name, the counts, and the steps over it."""
    yield "training", found.train.counted, f"{found.steps:,}"
    yield "held out", found.heldout.counted, ""


def print_sample(sample: "Sample", found: "StageData", console: Console) -> None:
    """Print a record as a model reads it, token by token in the colour of its part."""
    covered = sum(sample.loss)
    title = f"{sample.stage}{'' if sample.side is None else f', {sample.side}'}: {len(sample.ids)} tokens"
    title += f", the loss is on {covered}" if covered else ""
    console.print()
    console.print(Text(title, style="bold"))
    body = Text()
    for text, loss, is_prompt in spans(sample, found):
        body.append(text, LOSS if loss else PROMPT if is_prompt else RESPONSE)
    console.print(Padding(body, (0, 0, 0, 2), expand=False))
    for name, value in sample.meta.items():
        console.print(Padding(Text(f"{name}: {value}", style="dim"), (0, 0, 0, 2), expand=False))


def spans(sample: "Sample", found: "StageData") -> Iterator[tuple[str, int, bool]]:
    """Yield the runs of tokens of a record that are of one part: the text, whether the loss covers it, and whether it is of
    the prompt."""
    from rlhf.stages.reading import decode

    parts = [(loss, place < sample.prompt_tokens) for place, loss in enumerate(sample.loss)]
    start = 0
    for part, run in groupby(parts):
        end = start + len(list(run))
        before, whole = (decode(found.tokenizer, sample.ids[:place]) for place in (start, end))
        text = whole[len(before) :] if whole.startswith(before) else decode(found.tokenizer, sample.ids[start:end])
        yield text, *part
        start = end
