"""What a run leaves to read: summary.json with links to its stages, and the final table."""

import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.experiment.graph import Node
from rlhf.experiment.store import write_json

# Final figures in the order of the table: stage, metric, label, format.
ROWS = (
    ("sft", "eval/perplexity", "SFT perplexity, held-out", "{:.2f}"),
    ("reward", "eval/accuracy", "reward model accuracy, held-out pairs", "{:.3f}"),
    ("reward", "eval/accuracy_ceiling", "  … the label noise permits", "{:.3f}"),
    ("ppo", "eval/gold_sft", "gold reward of SFT, held-out prompts", "{:.2f}"),
    ("ppo", "eval/gold", "gold reward of PPO", "{:.2f}"),
    ("ppo", "eval/gold_sft_std", "  … SFT's standard deviation over prompts", "{:.2f}"),
    ("ppo", "eval/reward_sft", "reward model's score of SFT", "{:.2f}"),
    ("ppo", "eval/reward", "reward model's score of PPO", "{:.2f}"),
    ("ppo", "eval/kl_sequence", "KL to the reference, nats per response", "{:.2f}"),
    ("ppo", "eval/length_sft", "mean length of SFT, tokens", "{:.1f}"),
    ("ppo", "eval/length", "mean length of PPO, tokens", "{:.1f}"),
)


def link_run(run_directory: Path, planned: list[Node], reused: dict[str, bool]) -> None:
    """Write a run's summary.json and link the stages it used."""
    stages = {}
    for node in planned:
        stages[node.stage] = {
            "directory": str(node.directory.path),
            "reused": reused[node.stage],
            "metrics": node.directory.result().metrics,
        }
        link = run_directory / "stages" / node.directory.path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(node.directory.path, link.parent))
    write_json(run_directory / "summary.json", {"stages": stages})


def print_summary(planned: list[Node], console: Console) -> None:
    """The table of final figures, and two held-out prompts answered before and after PPO."""
    results = {node.stage: node.directory.result() for node in planned}
    table = Table(title="Result", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for stage, metric, label, form in ROWS:
        if stage in results and metric in results[stage].metrics:
            table.add_row(label, form.format(results[stage].metrics[metric]))
    table.add_section()
    for stage, result in results.items():
        table.add_row(f"seconds, {stage}", f"{result.seconds:.0f}")
    console.print(table)
    for node in planned:
        if node.stage == "ppo":
            print_samples(node, console)
        console.print(f"{node.stage}: {node.directory.path}")


def print_samples(node: Node, console: Console) -> None:
    """Two held-out prompts of the last evaluation, side by side."""
    lines = node.directory.samples.read_text().splitlines()[-2:]
    table = Table(title="Held-out prompts", title_justify="left", show_lines=True)
    for column in ("prompt", "SFT", "PPO"):
        table.add_column(column, overflow="fold", ratio=1)
    for line in lines:
        sample = json.loads(line)
        table.add_row(Text(sample["prompt"]), answer(sample, "sft"), answer(sample, "ppo"))
    console.print(table)


def answer(sample: dict[str, object], who: str) -> Text:
    """A response with its rewards."""
    gold = f", gold {sample[f'{who}_gold']:.2f}" if f"{who}_gold" in sample else ""
    return Text(f"{sample[who]}\n(score {sample[f'{who}_score']:.2f}{gold})")
