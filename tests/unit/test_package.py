"""What an installation needs: every import is declared, there is one version, types are public."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from support.command import ROOT

import rlhf

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What a package is called where it is installed, if not as it is imported.
DISTRIBUTIONS = {
    "hydra": "hydra-core", "starlette": "fastapi", "math_verify": "math-verify", "yaml": "pyyaml", "lm_eval": "lm-eval",
}  # fmt: skip


def imported(directory):
    """The packages that the modules of a directory import, but for Python's own."""
    found = set()
    for path in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in found - set(sys.stdlib_module_names) - {"rlhf"}}


def declared(*extras):
    """The packages that the project depends on, with some of its extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {re.match(r"[\w-]+", line)[0] for line in lines}


def test_every_import_is_declared():
    assert imported(ROOT / "rlhf") - declared("gguf", "lm-eval", "rewards", "search", "trl", "web") == set()


def test_every_dependency_is_imported():
    # TensorBoard is what torch.utils.tensorboard imports.
    assert declared() - imported(ROOT / "rlhf") - {"tensorboard"} == set()


def test_there_is_one_version():
    assert "version" in PROJECT["dynamic"]
    written = [
        path.name for path in ROOT.iterdir() if path.is_file() and rlhf.__version__ in path.read_text(errors="ignore")
    ]
    assert written == []


def test_types_are_public():
    assert (Path(rlhf.__file__).parent / "py.typed").is_file()
