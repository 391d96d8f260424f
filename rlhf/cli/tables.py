"""Tables of several plans: the hardware that runs a model, a GPU's largest models, published times beside planned ones."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from rlhf.cli.prepare import build_point, plan_tasks
from rlhf.config.compose import config_root
from rlhf.config.errors import ConfigError
from rlhf.config.points import compose_config
from rlhf.config.terminal import format_dollars, format_seconds
from rlhf.experiment.sweep import Task, build_task_graph, lay_out
from rlhf.planner.cost import Step, Totals, add_up
from rlhf.planner.memory import GIB
from rlhf.planner.plan import HOUR, StagePlan
from rlhf.planner.published import BENCHMARK, DOLLARS, HOURS, LARGEST

CONF = config_root() / "conf"


def plan_words(words: list[str]) -> tuple[list[Task], list[StagePlan], Totals]:
    """Plan what some overrides describe, stages that are done too. Raises ConfigError."""
    tasks = lay_out(build_task_graph([build_point(compose_config(*words), words, Path("plan"))]))
    plans = plan_tasks(tasks)
    totals = add_up([Step(task.key, task.parents, plans[task.key]) for task in tasks], slots=1)
    return tasks, [plans[task.key] for task in tasks], totals


def preset_names(group: str) -> list[str]:
    """Return the presets of a group, without those that need something more to be a choice."""
    return [file.stem for file in sorted((CONF / group).glob("*.yaml")) if file.stem not in ("cpu", "local")]


def list_fits(words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the presets of hardware, each with what the overrides take on it, or with why it does not run them."""
    for name in preset_names("hardware"):
        try:
            tasks, plans, totals = plan_words([*without("hardware", words), f"hardware={name}"])
        except ConfigError as error:
            yield {"hardware": name, "fits": False, "problem": str(error.problem)}
            continue
        hardware = tasks[0].config.hardware
        lacking = sorted({f"{memory} memory" for plan in plans for memory in plan.lacking})
        yield {
            "hardware": name, "gpus": hardware.nodes * hardware.gpus_per_node, "memory_gib": hardware.memory_gib,
            **describe_totals(plans, totals), "problem": f"lacks {', '.join(lacking)}" if lacking else None,
        }  # fmt: skip


def list_largest(words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each family with its largest model that the overrides' hardware runs; None where it runs none."""
    for family, names in models_by_family().items():
        found = largest_model(names, without("model", words))
        known = {"model": None} if found is None else {"model": found[0], **describe_totals(*found[1:])}
        yield {"family": family, **known}


def without(group: str, words: list[str]) -> list[str]:
    """Return the overrides that do not choose from a group."""
    return [word for word in words if not word.startswith(f"{group}=")]


def describe_totals(plans: list[StagePlan], totals: Totals) -> dict[str, Any]:
    """Return what a plan takes in all; its times and costs only if it fits."""
    taken = {"seconds": totals.seconds, "gpu_hours": totals.gpu_hours, "dollars": totals.dollars}
    peak = max(plan.peak for plan in plans) / GIB
    return {"fits": totals.fits, "gib_per_gpu": peak, **(taken if totals.fits else dict.fromkeys(taken))}


def fit_table(words: list[str]) -> Table:
    """Return the presets of hardware: which of them run what the overrides describe, at what time and price."""
    given = without("hardware", words)
    table = Table(title=f"Hardware for {' '.join(given) or 'the default'}", title_justify="left")
    for column in ("hardware", "GPUs", "GiB/GPU", "time", "GPU-hours", "cost", ""):
        table.add_column(column, justify="left" if column in ("hardware", "") else "right", no_wrap=column != "")
    for row in list_fits(words):
        memory = [str(row["gpus"]), f"{row['gib_per_gpu']:.0f}/{row['memory_gib']:g}"] if "gpus" in row else ["", ""]
        cells = [row["hardware"], *memory]
        if not row["fits"]:
            table.add_row(*cells, "", "", "", str(row["problem"]), style="dim")
            continue
        hours = "?" if row["gpu_hours"] is None else f"{row['gpu_hours']:,.0f}"
        table.add_row(*cells, format_seconds(row["seconds"]), hours, format_dollars(row["dollars"]), "")
    return table


def largest_table(words: list[str]) -> Table:
    """Return the largest model of each family that the overrides' hardware runs."""
    given = without("model", words)
    table = Table(title=f"Largest models: {' '.join(given) or 'the default hardware'}", title_justify="left")
    for column in ("family", "model", "GiB/GPU", "time", "cost"):
        table.add_column(column, justify="left" if column in ("family", "model") else "right", no_wrap=True)
    for row in list_largest(words):
        if row["model"] is None:
            table.add_row(row["family"], "none", "", "", "", style="dim")
            continue
        taken = f"{row['gib_per_gpu']:.0f}", format_seconds(row["seconds"]), format_dollars(row["dollars"])
        table.add_row(row["family"], row["model"], *taken)
    return table


def models_by_family() -> dict[str, list[str]]:
    """Return the presets of real models by family, the largest first."""
    sizes: dict[str, dict[str, int]] = {}
    for name in preset_names("model"):
        values = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
        if values.get("path") is not None:
            sizes.setdefault(values["family"], {})[name] = values["num_parameters"]
    return {family: sorted(found, key=lambda name: -found[name]) for family, found in sorted(sizes.items())}


def largest_model(names: list[str], words: list[str]) -> tuple[str, list[StagePlan], Totals] | None:
    """Return the first of some models whose stages all fit."""
    for name in names:
        try:
            _, plans, totals = plan_words([*words, f"model={name}"])
        except ConfigError:
            continue
        if totals.fits:
            return name, plans, totals
    return None


def published_cells() -> Iterator[tuple[str, str, float, Totals]]:
    """Yield the published hours of step 3 by hardware and model, each with the plan of the published recipe."""
    for (hardware, model), hours in HOURS.items():
        _, _, totals = plan_words([BENCHMARK, f"model={model}", f"hardware={hardware}"])
        yield hardware, model, hours, totals


def published_largest() -> Iterator[tuple[str, str, str]]:
    """Yield the hardware of the published table of largest models, with its model and the plan's."""
    names = models_by_family()["opt"]
    for hardware, model in LARGEST.items():
        found = largest_model(names, [BENCHMARK, f"hardware={hardware}"])
        yield hardware, model, "none" if found is None else found[0]


def list_published(words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the published hours and dollars beside planned ones."""
    check_published(words)
    for hardware, model, hours, totals in published_cells():
        planned = {"planned_hours": (totals.seconds or 0.0) / HOUR, "planned_dollars": totals.dollars}
        known = {"published_hours": hours, "published_dollars": DOLLARS.get((hardware, model))}
        yield {"hardware": hardware, "model": model, **known, **planned}


def check_published(words: list[str]) -> None:
    """Refuse overrides beside the published recipe."""
    if words:
        raise ConfigError("argument", words[0], "the published recipe is what it is", "leave it out")


def published_table(words: list[str]) -> Table:
    """Build the table of DeepSpeed-Chat's published times, dollars and largest models beside planned ones."""
    check_published(words)
    table = Table(title="DeepSpeed-Chat, step 3: published beside planned", title_justify="left")
    for column in ("hardware", "model", "published h", "planned h", "error", "published", "planned"):
        is_name = column in ("hardware", "model")
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    errors = []
    for hardware, model, hours, totals in published_cells():
        planned = (totals.seconds or 0.0) / HOUR
        errors.append(abs(planned / hours - 1))
        price = f"${DOLLARS[hardware, model]:,.0f}" if (hardware, model) in DOLLARS else ""
        cost = format_dollars(totals.dollars) if price else ""
        table.add_row(hardware, model, f"{hours:.3g}", f"{planned:.3g}", f"{planned / hours - 1:+.0%}", price, cost)
    table.add_section()
    table.add_row("median error", "", "", "", f"{statistics.median(errors):.0%}", "", "")
    table.add_row("worst error", "", "", "", f"{max(errors):.0%}", "", "")
    table.add_section()
    for hardware, model, planned_model in published_largest():
        table.add_row(hardware, "largest model", model, planned_model, "", "", "")
    return table
