"""What was measured, as tables: one for the terminal, one for docs/performance.md. Pure: no torch."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf.catalog.metric import MACHINE_GROUPS, Metric
from rlhf.config.terminal import plural
from rlhf.stages.bench.metrics import METRICS, TIME_OF

KNOWN: dict[str, Metric] = {metric.name: metric for metric in METRICS}
BASELINE = "baseline"
HEAD = (
    "| device | what | recipe | ours | baseline | times faster | seq/s | how near the limit | date, versions |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def spread(variant: dict[str, Any], main: str) -> str:
    """Return the median of a variant's main figure, with its least and its largest round."""
    rounds = variant["rounds"]
    return f"{variant['median'][main]:.3g} ({min(rounds):.3g} to {max(rounds):.3g})"


def build_table(found: dict[str, Any]) -> Table:
    """Return a row per figure, a column per variant; beside times, how often they go into the baseline's."""
    recipe, variants = found["recipe"], found["variants"]
    main = TIME_OF[recipe["what"]]
    title = f"{recipe['what']}: {describe_row(recipe)}, micro-batches of {recipe['micro_batch']}, seed {recipe['seed']}"
    shown = Table(title=title, title_justify="left", caption=found["memory"], caption_justify="left")
    shown.add_column(f"median of {recipe['repeats']}")
    for name, variant in variants.items():
        shown.add_column(f"{name}\n{variant['how']}", justify="right")
    measured = [variant["median"] for variant in variants.values() if variant["problem"] is None]
    names = dict.fromkeys(name for median in measured for name in median)
    order = sorted(KNOWN, key=lambda name: MACHINE_GROUPS.index(name.partition("/")[0]))
    for name in sorted(names, key=lambda name: (name != main, order.index(name))):
        cells = [cell(variant, name, main, beside(found, other)) for other, variant in variants.items()]
        shown.add_row(name, *cells, style="bold" if name == main else None, end_section=name == main)
    return shown


def beside(found: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the variant that one is measured beside, if there is one."""
    variants: dict[str, Any] = found["variants"]
    other = variants[name].get("beside", None if name == BASELINE else BASELINE)  # older results have none
    return variants.get(other)


def cell(variant: dict[str, Any], name: str, main: str, other: dict[str, Any] | None) -> str:
    """Return a figure of a variant; or, in the main row, why there is none."""
    base = {} if other is None else other["median"]
    if variant["problem"] is not None:
        return variant["problem"] if name == main else ""
    median = variant["median"]
    if name not in median:
        return ""
    percent = KNOWN[name].unit == "share"
    text = spread(variant, name) if name == main else f"{100 * median[name]:.1f} %" if percent else f"{median[name]:.4g}"
    timed = name.startswith("time/") and name != "time/decode_limit_ms" and name in base
    return text + (f"  {base[name] / median[name]:.1f}x" if timed else "")


def table(directory: Path) -> str:
    """Return stored results as Markdown, a row per variant of ours."""
    results = [json.loads(file.read_text()) for file in sorted(directory.glob("bench-*.json"))]
    rows = [row(found, name) for found in results for name in found["variants"] if not name.startswith((BASELINE, "trl "))]
    return "\n".join([HEAD, *rows])


def row(found: dict[str, Any], name: str) -> str:
    """Return a variant beside the baseline of its run."""
    recipe, own, base = found["recipe"], found["variants"][name], beside(found, name)
    main = TIME_OF[recipe["what"]]
    figures = own["median"]
    what = f"{recipe['what']}: {name}, {own['how']}" if recipe.get("peer") == "trl" else f"{recipe['what']}, {own['how']}"
    what = f"{recipe['what']}: {name}" if recipe["what"] == "stages" else what
    known = base is not None and base["problem"] is None and own["problem"] is None
    cells = [
        found["gpus"][0] if found["gpus"] else f"{found['processor']}, {plural(recipe['threads'], 'thread')}",
        what,
        describe_row(recipe),
        own["problem"] or f"{spread(own, main)} s",
        "–" if base is None else base["problem"] or f"{spread(base, main)} s{peer(base)}",
        times_as_fast(figures, base["median"], main) if known and base is not None else "–",
        next((f"{figures[rate]:.3g}" for rate in rates(recipe["what"]) if rate in figures), "–"),
        limits(figures, recipe["what"]),
        f"{found['date']}, torch {found['packages']['torch']}, transformers {found['packages']['transformers']}",
    ]
    return f"| {' | '.join(cells)} |"


def times_as_fast(own: dict[str, float], base: dict[str, float], main: str) -> str:
    """Return how often a variant's time goes into another's; and its time on the processor, where that is known."""
    busy = "time/busy_s"
    more = f" ({base[busy] / own[busy]:.1f} by processor time)" if busy in own and busy in base else ""
    return f"{base[main] / own[main]:.1f}{more}"


def peer(base: dict[str, Any]) -> str:
    """Whose the step is that ours is beside, where it is a peer's."""
    return f" ({base['how'].partition(',')[0]})" if base["how"].startswith("TRL") else ""


def describe_row(recipe: dict[str, Any]) -> str:
    """Return a recipe in a few words."""
    lora = f", LoRA {recipe['lora']}" if recipe["lora"] else ""
    offload = " with offload" if recipe["offload"] else ""
    zero = f", ZeRO {recipe['zero']}{offload}" if recipe["zero"] else ""
    size = f"{recipe['batch']} x ({recipe['prompt_tokens']} + {recipe['response_tokens']}) tokens"
    models = f"{recipe['model']} with {recipe['reward_model']}"
    return f"{models}, {recipe['dtype']}{zero}{lora}, {size}, {recipe['lengths']} lengths"


def rates(what: str) -> tuple[str, ...]:
    """Name the metrics in which a variant's sequences per second may be."""
    return ("throughput/samples_per_s", f"throughput/{what}_samples_per_s")


def limits(figures: dict[str, float], what: str) -> str:
    """Shares of what the device can do: of its memory's bandwidth while sampling, of its arithmetic while training, of the
    rate of its matrix products while scoring and training."""
    arithmetic = {"step3": "throughput/train_mfu", "stages": "throughput/mfu"}.get(what, f"throughput/{what}_mfu")
    told = []
    if "throughput/decode_share" in figures and what != "stages":
        told.append(f"decoding {100 * figures['throughput/decode_share']:.0f} % of bandwidth")
    if arithmetic in figures and what != "rollout":
        told.append(f"{'training ' if what == 'step3' else ''}MFU {100 * figures[arithmetic]:.0f} %")
    for phase, word in (("score", "scoring"), ("train", "training")):
        if (share := figures.get(f"throughput/{phase}_matrix_share")) is not None:
            told.append(f"{word} {100 * share:.0f} % of matrix rate")
    return ", ".join(told) or "–"
