"""Budgets of the package: what is too long to read, and what every function and module must say."""

import ast
from pathlib import Path

import rlhf

ROOT = Path(rlhf.__file__).parent
FILE_LINES, FUNCTION_LINES, P90_LINES = 400, 60, 35
FILES = {path.relative_to(ROOT): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in FILES.items()}
FUNCTIONS = [
    (f"{path}:{node.lineno} {node.name}", node)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def length(function):
    return function.end_lineno - function.lineno + 1


def test_the_package_was_found():
    assert len(FILES) > 40
    assert len(FUNCTIONS) > 150


def test_files_are_short():
    assert [f"{path}: {lines}" for path, text in FILES.items() if (lines := len(text.splitlines())) > FILE_LINES] == []


def test_functions_fit_a_screen():
    assert [f"{name}: {length(node)}" for name, node in FUNCTIONS if length(node) > FUNCTION_LINES] == []


def test_nine_functions_of_ten_are_short():
    lengths = sorted(length(node) for _, node in FUNCTIONS)
    assert lengths[int(0.9 * len(lengths))] <= P90_LINES


def test_every_function_says_what_it_returns():
    assert [name for name, node in FUNCTIONS if node.returns is None] == []


def test_every_module_that_holds_anything_has_a_docstring():
    assert [str(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)] == []


def public(body):
    """Public classes and functions, and public methods of public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def test_every_public_class_and_function_has_a_docstring():
    silent = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        for node in public(tree.body)
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_error_is_swallowed():
    def says_nothing(handler):
        return all(
            isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in handler.body
        )

    handlers = [(path, n) for path, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)]
    assert handlers
    assert [f"{path}:{n.lineno}" for path, n in handlers if n.type is None or says_nothing(n)] == []


PYTHONS_OWN = {
    "__init__", "__name__", "__class__", "__mro__", "__dict__", "__file__", "__doc__", "__cause__", "__version__", "_exit",
}  # fmt: skip
# Those of Hydra, which the configuration needs: runtime lies above it.
HYDRAS = {Path("config") / "hydra_compat.py"}
# Of other libraries: names without an underscore that are no part of what they document.
INTERNAL = {
    "scaled_global_norm", "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "clip_fp32_gradients",
    "parameter_offload", "setup_zero_stage3_hooks", "background_thread_status", "logit_processor", "cb_logits_processors",
}  # fmt: skip


def is_internal(name):
    return name not in PYTHONS_OWN and (name.startswith(("_", "ds_")) or name in INTERNAL)


def named(tree):
    """(line, name) of what a module asks other objects for: attributes, imports, and names given to getattr and its kin."""
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name):
                of_itself = isinstance(value, ast.Name) and value.id == "self" and name in own
                of_its_parent = (
                    isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
                )
                if not of_itself and not of_its_parent:
                    yield node.lineno, name
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr" | "patched"), args=args):
                yield from ((node.lineno, arg.value) for arg in args if isinstance(arg, ast.Constant) and arg.value)
            case ast.ImportFrom(module=module, names=names) if not module.startswith("rlhf"):
                yield from ((node.lineno, part) for part in module.split("."))
                yield from ((node.lineno, name.name) for name in names)


def test_private_names_of_other_libraries_lie_in_one_place():
    compat = Path("runtime") / "compat"
    found = [
        f"{path}:{line} {name}"
        for path, tree in TREES.items()
        if compat not in path.parents and path not in HYDRAS
        for line, name in named(tree)
        if isinstance(name, str) and is_internal(name)
    ]
    assert found == []
    assert any(is_internal(name) for path in TREES if compat in path.parents for _, name in named(TREES[path]))
