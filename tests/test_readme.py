"""README's table of families is made of the list that the tests run and of the results of the demo, which are stored."""

import json
from pathlib import Path

from test_families import FAMILIES

from rlhf.cli.bench import table as speed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "demo-families-cpu.json"
HEAD = (
    "| family | sizes in `conf/model` | tests, all weights | tests, LoRA, two ranks | demo, gold: SFT → PPO | KL, nats |\n"
    "|---|---|---|---|---|---|"
)


def table():
    """One line per family, in the order of the list."""
    results = json.loads(RESULTS.read_text())["results"]
    lines = [HEAD]
    for number, (family, sizes) in enumerate(FAMILIES.items()):
        demo = results[family]
        gold = f"{demo['eval/gold_sft']:.2f} ± {demo['eval/gold_sft_std']:.2f} → {demo['eval/gold']:.2f}"
        tested = f"SFT, reward, PPO | SFT, reward, PPO, ZeRO {number % 4}"
        lines.append(f"| {family} | {sizes} | {tested} | {gold} | {demo['eval/kl_sequence']:.1f} |")
    return "\n".join(lines)


def test_the_table_of_families_is_that_of_the_tests():
    assert table() in (ROOT / "README.md").read_text(), f"put this into README.md:\n{table()}"


def test_the_table_of_speed_is_that_of_the_stored_results():
    found = speed(RESULTS.parent)
    assert found in (ROOT / "README.md").read_text(), f"put this into README.md:\n{found}"


if __name__ == "__main__":
    print(table())
