"""A stage is named in its package and in conf/ alone: all other files read the kinds, so that a new one changes none."""

import ast
from functools import cache
from pathlib import Path

import pytest

import rlhf
from rlhf.algo.dpo import LOSSES
from rlhf.catalog.stage import stage_kinds
from rlhf.cli import VERBS

ROOT = Path(rlhf.__file__).parent
KINDS = stage_kinds()
# What the parameters, attributes and variables that hold a stage's name are called.
HOLDERS = {"stage", "stages", "kind", "kinds"}
# These words mean other things too: inputs of stages (and the models that are made of them), verbs of the command line,
# losses.
AMBIGUOUS = {entry.name for kind in KINDS.values() for entry in kind.inputs} | set(VERBS) | set(LOSSES)


@cache
def outside_stages():
    """The modules of the package but those of a kind of stage, by path."""
    files = sorted(ROOT.rglob("*.py"))
    owned = [ROOT / "stages" / name for name in KINDS]
    return {str(f.relative_to(ROOT)): ast.parse(f.read_text()) for f in files if not any(d in f.parents for d in owned)}


@cache
def takes_stage():
    """Where each function of the package takes a stage's name: function, position."""
    found = set()
    for tree in outside_stages().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
                found |= {(node.name, place) for place, name in enumerate(names) if name in HOLDERS}
    return found


def last_name(node):
    """The name of a variable, attribute or function, or of what an index or a call is applied to."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return getattr(node, "attr", getattr(node, "id", None))


def words_in(node):
    """The names of stages among the words below a node; the choices of a key are no stages."""
    if isinstance(node, ast.keyword) and node.arg == "choices":
        return set()
    own = {node.value} & set(KINDS) if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
    return own.union(*map(words_in, ast.iter_child_nodes(node)))


def used_as_stage(tree, takes):
    """The words that stand where a stage's name stands: compared with one, an index by one, handed on as one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(last_name(n) in HOLDERS for side in sides for n in ast.walk(side)):
                yield from (word for side in sides for word in words_in(side))
        elif isinstance(node, ast.Subscript) and last_name(node.value) in HOLDERS:
            yield from words_in(node.slice)
        elif isinstance(node, ast.Call):
            places = [argument for place, argument in enumerate(node.args) if (last_name(node.func), place) in takes]
            keywords = [keyword.value for keyword in node.keywords if keyword.arg in HOLDERS]
            yield from (word for value in (*places, *keywords) for word in words_in(value))


def named_stages(trees, takes):
    """The stages that modules name, with the modules."""
    found = []
    for path, tree in trees.items():
        plain = words_in(tree) - AMBIGUOUS
        found += [(path, word) for word in sorted(plain | set(used_as_stage(tree, takes)))]
    return found


def test_no_other_file_names_a_stage():
    trees = outside_stages()
    assert len(trees) > 150 and len(set(KINDS) - AMBIGUOUS) > 1
    assert named_stages(trees, takes_stage()) == []


@pytest.mark.parametrize(
    "line",
    [
        'if node.stage == "reward": pass', 'x = "bench" in config.stages', 'x = point.stages["reward"]',
        'plan = batches(config, "reward")', 'f(stage="bench")', 'STEPS = {"ppo": "PPO step"}', 'x = group.values("sft", 1)',
    ],
)  # fmt: skip
def test_a_line_that_names_one_is_found(line):
    assert named_stages({"a.py": ast.parse(line)}, takes_stage())


@pytest.mark.parametrize("line", ['if ppo.critic == "reward": pass', 'x = "bench"', 'engine.models_on_device("reward")'])
def test_other_meanings_of_the_words_pass(line):
    assert named_stages({"a.py": ast.parse(line)}, takes_stage()) == []


def test_what_reads_data_says_which_records():
    """Else the verb `data` would leave a stage out."""
    for kind in KINDS.values():
        assert (kind.records is None) == (kind.reads is None), kind.name
