"""Imports point one way, and the entry stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf

ROOT = Path(rlhf.__file__).parent
# From low to high: a room imports from itself and from the rooms before it; the first two import from each other.
ROOMS = (
    "config", "catalog", "algo", "planner", "runtime", "experiment", "tracking", "data", "models", "engine", "rollout",
    "rewards", "evaluation", "ppo", "stages", "chat", "report", "launch", "cli",
)  # fmt: skip
HEIGHT = {name: max(1, height) for height, name in enumerate(ROOMS)}
# `from rlhf import DeepSpeedPPOTrainer, load_config`: the package itself only re-exports what users build on, by room.
EXPORTED = {"DeepSpeedPPOTrainer": "ppo", "DeepSpeedRLHFEngine": "ppo", "load_config": "cli"}
ENTRIES = ROOT / "__init__.py", ROOT / "__main__.py"
MODULES = sorted(path for path in ROOT.rglob("*.py") if path not in ENTRIES)


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


def test_imports_point_down():
    upward = [
        f"{path.relative_to(ROOT)}, line {line}: {room(path)} imports {target}"
        for path in MODULES
        for line, target in imported_rooms(ast.parse(path.read_text()))
        if HEIGHT[target] > HEIGHT[room(path)]
    ]
    assert upward == []


def imported_modules(tree):
    """The modules of this package that a module imports, nested imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf"):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in NAMES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("rlhf."))


NAMES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}


def test_no_modules_import_each_other():
    imports = {name: set(imported_modules(ast.parse(path.read_text()))) & set(NAMES) for name, path in NAMES.items()}
    while leaves := [name for name, targets in imports.items() if not targets]:
        imports = {name: targets - set(leaves) for name, targets in imports.items() if name not in leaves}
    assert imports == {}, "modules in circles, and what imports them"


def test_the_package_exports_what_users_build_on_and_nothing_else():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert {target for _, target in imported_rooms(tree)} == set(EXPORTED.values())
    assert set(rlhf.__all__) == set(EXPORTED)
    for name, home in EXPORTED.items():
        assert getattr(rlhf, name).__module__.split(".")[1] == home


PURE = {name: sorted((ROOT / name).rglob("*.py")) for name in ("config", "catalog", "experiment", "planner", "report")}
PURE["stages"] = [*(ROOT / "stages").rglob("__init__.py")]


@pytest.mark.parametrize("room_name", PURE)
def test_pure_rooms_import_no_torch(room_name):
    for path in PURE[room_name]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "deepspeed", "transformers"}, path


def test_the_kinds_of_stages_load_nothing_heavy():
    code = (
        "import sys; from rlhf.catalog.stage import stage_kinds; kinds = list(stage_kinds()); "
        "print(kinds, sorted({'torch', 'deepspeed', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sft', 'reward', 'ppo', 'best_of_n', 'dpo', 'evaluate', 'evaluate_reward', 'bench'] []"


def test_deepspeed_is_imported_in_runtime_and_engine_alone():
    rooms = {
        room(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "deepspeed" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepspeed")
    }
    assert rooms <= {"runtime", "engine"}


def test_importing_the_entry_loads_nothing_heavy():
    heavy = ("torch", "deepspeed", "transformers", "wandb", "datasets", "peft", "numpy")
    code = f"import sys, rlhf.cli.run; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
