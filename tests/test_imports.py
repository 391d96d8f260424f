"""Imports point one way, and the entry stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf

ROOT = Path(rlhf.__file__).parent
# From low to high: a package may import its own layer and those before it.
LAYERS = (
    ("config",),
    ("experiment", "plan"),
    ("algo", "track"),
    ("models", "data", "engine"),
    ("rollout",),
    ("ppo",),
    ("measure",),
    ("stages",),
    ("launch", "prepare", "report", "status"),
    ("search",),
    ("main", "__main__", "bench"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
# `from rlhf import DeepSpeedPPOTrainer, load_config`: the package itself only re-exports what users build on, by room.
EXPORTED = {"DeepSpeedPPOTrainer": "ppo", "DeepSpeedRLHFEngine": "ppo", "load_config": "prepare"}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path):
    """The package of a file, or its own name at the top."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(tree):
    """(line, room) of every import from this package, nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if node.module == "rlhf":
                for name in node.names:
                    yield node.lineno, name.name if name.name in HEIGHT else EXPORTED[name.name]
            elif node.module.startswith("rlhf."):
                yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("rlhf."):
                    yield node.lineno, name.name.split(".")[1]


def test_every_module_has_a_layer():
    assert {room(path) for path in MODULES} <= set(HEIGHT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    upward = [
        f"line {line}: {room(path)} imports {target}"
        for line, target in imported_rooms(ast.parse(path.read_text()))
        if HEIGHT[target] > HEIGHT[room(path)]
    ]
    assert upward == []


def test_the_package_exports_what_users_build_on_and_nothing_else():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert {target for _, target in imported_rooms(tree)} == set(EXPORTED.values())
    assert set(rlhf.__all__) == set(EXPORTED)
    for name, home in EXPORTED.items():
        assert getattr(rlhf, name).__module__.split(".")[1] == home


@pytest.mark.parametrize("room_name", ["config", "experiment", "plan"])
def test_pure_rooms_import_no_torch(room_name):
    for path in (ROOT / room_name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "deepspeed", "transformers"}, path


def test_deepspeed_is_imported_in_engine_alone():
    rooms = {
        room(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "deepspeed" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepspeed")
    }
    assert rooms == {"engine"}


def test_importing_the_entry_loads_nothing_heavy():
    heavy = ("torch", "deepspeed", "transformers", "wandb", "datasets", "peft", "numpy")
    code = f"import sys, rlhf.main; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
