"""Make the reference pages of the documentation: every configuration key, and every metric.

mkdocs calls `on_files` (mkdocs.yml, `hooks`) when it builds the site, so the pages are never out of date and not committed.
The keys come from the schema, their defaults and meanings from the values and comments of conf/.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlhf.catalog.metric import MACHINE_GROUPS
from rlhf.catalog.recipe import DEMO
from rlhf.catalog.stage import metrics_of, stage_kinds
from rlhf.config.keys import KEYS, without_none
from rlhf.config.metadata import WHOLE
from rlhf.experiment.fingerprint import result_keys

CONF = Path(__file__).resolve().parents[1] / "conf"
# The file of each group that holds all its keys, with a comment for each.
BASES = {
    "model": "local", "hardware": "cpu", "precision": "auto", "zero": "0", "lora": "none", "data": "demo", "sft": "demo",
    "reward": "demo", "ppo": "demo", "dpo": "demo", "best_of_n": "demo", "rollout": "hybrid", "tracking": "jsonl",
    "launcher": "auto", "stage": "all", "rewards": "model",
}  # fmt: skip
# Groups that have the keys of another group.
ROLES = {
    "reward_model": "model", "critic_zero": "zero", "reference_zero": "zero", "reward_zero": "zero", "critic_lora": "lora",
    "reward_lora": "lora",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A key of a YAML file: its value as it stands there, and the comment above it."""

    value: Any
    comment: str


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the files of the site (mkdocs calls this)."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages by their path in docs/."""
    return {
        "reference/configuration.md": configuration_page(),
        "reference/metrics.md": metrics_page(),
        "changes.md": (CONF.parent / "CHANGELOG.md").read_text(),
        "contributing.md": (CONF.parent / "CONTRIBUTING.md").read_text(),
    }


@cache
def read_entries(file: Path) -> dict[str, Entry]:
    """Return the keys of a YAML file with their comments, by dotted key; a group is an entry too, for its comment."""
    text = file.read_text()
    lines = text.splitlines()
    root = yaml.compose(text)
    return dict(walk(root, lines, "")) if isinstance(root, yaml.MappingNode) else {}


def walk(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, Entry]]:
    """Yield every key below a node."""
    for key_node, value_node in node.value:
        key = prefix + key_node.value
        comment = comment_above(lines, key_node.start_mark.line, key_node.start_mark.column)
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            yield key, Entry(None, comment)
            yield from walk(value_node, lines, key + ".")
        else:
            yield key, Entry(yaml.safe_load(yaml.serialize(value_node)), comment)


def comment_above(lines: list[str], line: int, column: int) -> str:
    """Return the comment that stands directly above a line, in one line of text."""
    found: list[str] = []
    for text in reversed(lines[:line]):
        if not text.startswith(" " * column + "#"):
            break
        found.insert(0, text.strip().removeprefix("#").strip())
    return " ".join(found)


def option(group: str, name: str) -> dict[str, Entry]:
    """Return the keys of an option of a group, with the keys of the options that it builds on."""
    file = CONF / group / f"{name}.yaml"
    entries = read_entries(file)
    bases = entries["defaults"].value if "defaults" in entries else []
    merged: dict[str, Entry] = {}
    for base in bases:
        if isinstance(base, dict):  # as length@_here_, an option of a group of its own
            ((nested, chosen),) = base.items()
            merged |= option(f"{group}/{nested.partition('@')[0]}", default_option(chosen))
        elif base != "_self_":
            merged |= option(group, str(base))
    for key, entry in entries.items():
        if key != "defaults":
            known = merged.get(key)
            merged[key] = Entry(entry.value, known.comment if known else entry.comment)
    return merged


def default_option(name: object) -> str:
    """Return an option of conf/config.yaml; of one that follows the model, what the default model, a tiny one, takes."""
    followed = re.fullmatch(r"\$\{rlhf_recipe:\$\{model\},(\w+)\}", str(name))
    return str(name) if followed is None else "${model}" if followed[1] == "reward_model" else getattr(DEMO, followed[1])


def chosen_options() -> dict[str, str]:
    """Return the option of each group that conf/config.yaml chooses; `zero@critic_zero: same` is `critic_zero: same`."""
    chosen: dict[str, str] = {}
    for item in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]:
        if isinstance(item, dict):
            ((group, name),) = item.items()
            if not group.startswith("override "):
                chosen[group.rpartition("@")[2]] = default_option(name)
    return chosen


@cache
def all_entries() -> dict[str, Entry]:
    """Return the default and the meaning of every key, by dotted key, and the comments of groups."""
    found = dict(read_entries(CONF / "config.yaml"))
    found |= option("stage", "all")
    for group, name in chosen_options().items():
        base = ROLES.get(group, group)
        if base in ("stage", "detail"):
            continue
        if base == "algorithm":  # its option holds keys of several groups
            found |= option(base, name)
            continue
        meanings = option(base, BASES[base])
        values = meanings if name == "${model}" else meanings | option(base, name)
        for key, entry in values.items():
            comment = meanings[key].comment
            value = f"${{model.{key}}}" if name == "${model}" else entry.value
            found[f"{group}.{key}"] = Entry(value, f"As `{base}.{key}`." if group in ROLES else comment)
    return found


def meaning(key: str) -> str:
    """Return what a key means: its comment, or that of the same key of `sft`, which the stages that train share."""
    entries = all_entries()
    comment = entries[key].comment if key in entries else ""
    group, _, name = key.partition(".")
    if not comment and group in ("reward", "ppo", "dpo"):
        shared = entries.get(f"sft.{name}")
        comment = shared.comment if shared else ""
    return comment


def show_default(key: str) -> str:
    """Return a key's default as it is typed on the command line."""
    value = all_entries()[key].value
    if isinstance(value, str) and (match := re.fullmatch(r"\$\{(\.?)([\w.]+)\}", value)):
        group = key.rpartition(".")[0] + "." if match[1] else ""
        return f"as `{group}{match[2]}`"
    if isinstance(value, str) and (match := re.fullmatch(r"\$\{rlhf_choose:\$\{\.(\w+)\},\{(.*)\},(.*)\}", value)):
        others = (pair.split(":") for pair in match[2].split(","))
        told = ", ".join(f"`{float(other):g}` for `{name}`" for name, other in others)
        return f"`{float(match[3]):g}`; {told}"
    if isinstance(value, str) and (match := re.fullmatch(r"\$\{rlhf_share:(\w+),\$\{([\w.]+)\}\}", value)):
        return f"`{match[1]}` divided by `{match[2]}`"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    text = f"{value:g}" if isinstance(value, float) else str(value).replace("'", "").replace("\n", "\\n")
    return f"`{text}`" if text else "empty"


def show_values(key: str) -> str:
    """Return the type of a key, its unit, and the values that it may hold."""
    known = KEYS[key]
    plain = without_none(known.type)
    name = {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(plain)
    name = name or ("list of text" if str(plain).startswith("list[str") else str(plain).replace("typing.", ""))
    name = {"list[float]": "list of two numbers", "dict[str, Any]": "mapping", "Any": "`auto` or a list of text"}.get(
        name, name
    )
    if known.choices:
        words = ", ".join(f"`{json.dumps(word) if isinstance(word, bool) else word}`" for word in known.choices)
        name = f"list of {words}" if str(plain).startswith("list") else words
    elif known.auto:
        name = "`auto` or a whole number"
    parts = [name]
    if known.range is not None and known.range != WHOLE:
        parts.append(str(known.range).partition(" and at most 1e")[0])
    parts += [known.unit] if known.unit else []
    return ", ".join(parts) + (", or null" if known.optional else "")


def show_effect(key: str) -> str:
    """Return the stages whose fingerprint a key enters, and the value at which it is left out of it."""
    kinds = stage_kinds().values()
    if KEYS[key].effect == "input":
        return ", ".join(kind.name for kind in kinds if any(given.key == key for given in kind.inputs)) + ", by content"
    stages = [kind.name for kind in kinds if not kind.is_benchmark and key in result_keys(kind.name)]
    if not stages:
        return "bench" if key in result_keys("bench") else "none"
    return ", ".join(stages) + (", by content" if KEYS[key].content else "") + show_switches(key)


def show_switches(key: str) -> str:
    """Return the values of other keys at which a key does nothing, as the end of a sentence."""
    off = [(name, KEYS[name].neutral) for name in KEYS[key].switches]
    typed = [f"`{name}={value if isinstance(value, str) else json.dumps(value)}`" for name, value in off]
    return f", unless {' or '.join(typed)}" if typed else ""


def cell(text: str) -> str:
    """Return a text that a cell of a Markdown table holds."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def configuration_page() -> str:
    """Return the page of all keys, a section for each group."""
    lines = [
        "# All keys",
        "",
        "This page is generated from `rlhf/config/schema/` and from the values and comments of `conf/`.",
        "",
        "*Fingerprint* names the stages for which another value makes another stage. A key with *none* changes no result",
        "beyond rounding. *Unless* names a value of another key at which a key does nothing and is left out. *By content*",
        "means that the hash of the file or model counts, not its path. A benchmark measures speed, so its fingerprint",
        "holds nearly all keys; *bench* marks a key that only it holds.",
        "",
        "Upper limits of a million and more are left out. `null` takes away a limit or leaves the choice to the program.",
        "",
    ]
    group: str | None = None
    for key in KEYS:
        name = key.split(".")[0] if "." in key else "top level"
        if name != group:
            group = name
            title = "Top level" if name == "top level" else f"`{name}`"
            lines += ["", f"## {title}", "", *group_text(name), "| key | default | values | fingerprint | meaning |"]
            lines.append("|---|---|---|---|---|")
        cells = (f"`{key}`", show_default(key), show_values(key), show_effect(key), meaning(key))
        lines.append("| " + " | ".join(cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"


def group_text(group: str) -> list[str]:
    """Return what stands above a group's table: its options, and its comment in conf/config.yaml."""
    base = ROLES.get(group, group)
    lines: list[str] = []
    entry = all_entries().get(group)
    if entry and entry.comment:
        lines += [entry.comment, ""]
    if base in BASES:
        names = sorted(file.stem for file in (CONF / base).glob("*.yaml"))
        flag = group if group in ("reward_model", base) else f"{base}@{group}"
        lines += [f"Options of `{flag}=`: " + ", ".join(f"`{name}`" for name in names) + ".", ""]
    return lines


def metrics_page() -> str:
    """Return the page of all metrics, a section for each group; those that depend on the machine come last."""
    lines = [
        "# All metrics",
        "",
        "This page is generated from what each stage declares (`metrics` in `rlhf/stages/<stage>/`). Only the groups "
        + ", ".join(f"`{name}/`" for name in MACHINE_GROUPS)
        + " depend on the machine. A metric ending in `_se` is a standard error over held-out prompts.",
    ]
    known = [(stage, metric) for stage in stage_kinds() for metric in metrics_of(stage).values()]
    groups = list(dict.fromkeys(metric.name.split("/")[0] for _, metric in known))
    for group in sorted(groups, key=lambda group: group in MACHINE_GROUPS):
        stages: dict[tuple[str, ...], list[str]] = {}
        for stage, metric in known:
            if metric.name.startswith(group + "/"):
                cells = f"`{metric.name}`", cell(metric.unit), cell(metric.label), cell(metric.description)
                stages.setdefault(cells, []).append(stage)
        lines += ["", f"## `{group}/`", "", "| metric | stages | unit | label | meaning |", "|---|---|---|---|---|"]
        lines += [f"| {name} | {', '.join(used)} | {' | '.join(cells)} |" for (name, *cells), used in stages.items()]
    return "\n".join(lines) + "\n"
