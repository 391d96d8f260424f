"""README and docs/: their tables are those of stored results, their commands compose, their reference pages are whole."""

import importlib.util
import json
import re
import shlex

import pytest
from support.command import ROOT

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.stage import known_metrics
from rlhf.cli import VERBS
from rlhf.cli.bench import compose_benchmark
from rlhf.cli.bench import table as speed
from rlhf.cli.search import split_sweep, wants_search
from rlhf.config.command import read_command
from rlhf.config.keys import leaf_keys
from rlhf.config.points import Composer
from rlhf.data.cells import Dropped
from rlhf.stages.bench.growth import make_table, read_series

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
RESULTS = ROOT / "experiments" / "results" / "demo-families-cpu.json"
# Paths of files that the pages tell the reader to write.
EXAMPLES = (
    "conf/algorithm/opo.yaml",
    "conf/data/rm-static.yaml",
    "conf/rollout/plain.yaml",
    "conf/stage/relearn.yaml",
)
HEAD = (
    "| family | sizes in `conf/model` | tests, all weights | tests, LoRA, two ranks | demo, gold: SFT → PPO | KL, nats |\n"
    "|---|---|---|---|---|---|"
)


def table():
    """One line per family, in the order of the list."""
    results = json.loads(RESULTS.read_text())["results"]
    lines = [HEAD]
    for number, (family, facts) in enumerate(FAMILIES.items()):
        demo = results[family]
        gold = f"{demo['eval/gold_sft']:.2f} ± {demo['eval/gold_sft_std']:.2f} → {demo['eval/gold']:.2f}"
        tested = f"SFT, reward, PPO | SFT, reward, PPO, ZeRO {number % 4}"
        lines.append(f"| {family} | {facts.sizes} | {tested} | {gold} | {demo['eval/kl_sequence']:.1f} |")
    return "\n".join(lines)


def test_the_table_of_families_is_that_of_the_tests():
    assert table() in (ROOT / "docs" / "models.md").read_text(), f"put this into docs/models.md:\n{table()}"


def test_the_table_of_speed_is_that_of_the_stored_results():
    found = speed(RESULTS.parent)
    assert found in (ROOT / "docs" / "performance.md").read_text(), f"put this into docs/performance.md:\n{found}"


def test_the_page_of_performance_holds_the_stored_results_of_a_gpu():
    _, _, stored = (RESULTS.parent / "gpu-h200-2026-11-26.md").read_text().split("\n", 2)
    assert stored.strip() in (ROOT / "docs" / "performance.md").read_text()


def test_the_tables_of_growth_are_those_of_the_stored_results():
    page = (ROOT / "docs" / "growth.md").read_text()
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.parent.glob("growth-*.json"))]
    tables = [make_table(read_series(series)) for found in results for series in found["series"]]
    assert len(tables) >= 7
    assert [table for table in tables if table not in page] == []


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 124 and not line.startswith("|")] == []


def commands(page):
    """The shell commands of a page that stand in indented or fenced lines and call this package, as lists of words."""
    text = page.read_text().replace("\\\n", " ")
    fence, found = None, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip().removeprefix("```")
        elif fence in ("", "sh", "bash", "shell", "console") or (fence is None and line.startswith("    ")):
            for part in re.split(r"&&|;", line):
                with_variables = re.match(r"\s*(?:[A-Z_]+=\S+\s+)*python -m (rlhf\b.*)", part)
                if with_variables:
                    found.append(shlex.split(with_variables[1], comments=True))
    return found


COMMANDS = {" ".join(words): words for page in PAGES for words in commands(page)}


def test_commands_were_found():
    assert len(COMMANDS) > 40
    assert {words[1] for words in COMMANDS.values() if len(words) > 1} >= set(VERBS) - {"run"}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_commands_compose(words, make_config):
    module, *arguments = words
    asks_for_one = not any(word.startswith("-") for word in arguments)
    if module != "rlhf":
        assert importlib.util.find_spec(module) is not None
    elif arguments and arguments[0] in VERBS:
        if arguments[0] == "bench":
            compose_benchmark([word for word in arguments[1:] if word != "--table"])
    elif asks_for_one:
        make_config(*arguments)
    else:
        with Composer(read_command(arguments)) as composer:
            if wants_search(composer):
                fixed, space = split_sweep(composer)
                assert composer.compose_job(fixed).config
                assert space
            else:
                assert composer.compose_job(composer.points[0]).config


def test_paths_that_are_named_exist():
    named = {
        (page.name, path.rstrip("."))
        for page in [*PAGES, ROOT / "CHANGELOG.md"]
        for path in re.findall(r"(?<![\w/.-])(?:rlhf|tests|conf|experiments|sweeps|docs)/[\w./-]*\w", page.read_text())
    }
    assert len(named) > 60
    assert [(page, path) for page, path in named if not (ROOT / path).exists() and path not in EXAMPLES] == []


def test_the_example_of_a_data_set_composes(tmp_path):
    text = (ROOT / "docs" / "extending.md").read_text()
    example = re.search(r"`conf/data/(rm-static)\.yaml`:\n\n```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{example[1]}.yaml").write_text(example[2])
    with Composer(read_command(["--config-dir", str(tmp_path), f"data={example[1]}"])) as composer:
        data = composer.compose_job(composer.points[0]).config.data
    assert (data.source, data.hub.name, data.prompt_format) == ("hub", "Dahoas/rm-static", "{prompt}")


def test_the_example_of_a_converter_reads_its_rows():
    text = (ROOT / "docs" / "extending.md").read_text()
    shown = text[text.index("## A data set") : text.index("## A reward")]
    names = {}
    exec(re.search(r"```python\n(.*?)```", shown, flags=re.DOTALL)[1], names)
    answers = [{"text": "Yes.", "votes": 3}, {"text": "No.", "votes": 1}]
    (record,) = names["convert"]({"title": "Is it?", "answers": answers, "id": 7})
    assert (record.prompt, record.ranked, record.meta) == ("Is it?", (("Yes.", 3.0), ("No.", 1.0)), {"id": 7})
    with pytest.raises(Dropped, match="single answer"):
        list(names["convert"]({"title": "Is it?", "answers": answers[:1]}))


@pytest.fixture(scope="module")
def generated():
    """The pages that mkdocs is given beside those of docs/."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def rows(page):
    """The cells of a page's tables, by what the first one names."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return {cells[0].strip("` "): cells[1:] for line in lines if (cells := re.split(r"(?<!\\)\|", line.strip("|")))}


def test_every_key_has_a_row_and_every_cell_of_it_is_filled(generated):
    found = rows(generated["reference/configuration.md"])
    assert list(found) == leaf_keys()
    assert [key for key, cells in found.items() if not all(cell.strip() for cell in cells)] == []


def test_every_metric_has_a_row(generated):
    found = rows(generated["reference/metrics.md"])
    assert sorted(found) == sorted(known_metrics())
    assert [name for name, (stages, _, _, meaning) in found.items() if not (stages.strip() and meaning.strip())] == []


def test_every_page_is_in_the_navigation(generated):
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted([*(page.name for page in DOCS), *generated])


if __name__ == "__main__":
    print(table())
