"""Holds the arrows of the architecture (drawn in CONTRIBUTING.md): who may import whom, read from the sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What everybody may use.
LEAVES = {"errors", "files", "attributes", "batch"}
# Part of the house (folder or module of specfast): the other parts it may import. First the leaves and what stands
# beside them, then what stands above.
ARROWS = {
    "__init__": set(),
    "errors": set(),
    "files": set(),
    "attributes": {"errors"},
    "batch": {"errors", "attributes"},
    "kernels": set(),
    "_native": {"_C"},
} | {
    part: LEAVES | uses
    for part, uses in {
        "testing": set(),
        "ops": {"kernels", "_native", "_C"},
        "models": {"ops"},
        "data": set(),
        "dssync": {"ops"},
        "train": {"models", "data", "dssync"},
        "evaluate": {"models", "data"},
        "tasks": {"models", "data", "train", "evaluate"},
        "infer": {"models", "data"},
        "export": {"models", "data", "testing"},
        "integrations": {"models", "data", "train"},
        "report": {"models", "data"},
        "environment": {"_native"},
        # __init__: the public names, fetched from anywhere; only the top may use these
        "cli": {"__init__", "export", "train", "tasks", "infer", "evaluate", "report"}
        | {"models", "data", "dssync", "ops", "environment"},
        "__main__": {"cli", "environment"},
    }.items()
}


def modules() -> dict[str, Path]:
    """Our modules by dotted name, kernels/ under the name it is imported by."""
    found = {}
    for path in sorted(ROOT.glob("specfast/**/*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    for path in sorted(ROOT.glob("kernels/*/**/*.py")):
        found[".".join(("specfast", *path.relative_to(ROOT).with_suffix("").parts))] = path
    return found


MODULES = modules()
PACKAGES = {name.removesuffix(".__init__") for name in MODULES if name.endswith(".__init__")}
PUBLIC = next(  # names that specfast/__init__.py fetches on demand, and where they live
    ast.literal_eval(node.value)
    for node in ast.parse(MODULES["specfast.__init__"].read_text()).body
    if isinstance(node, ast.Assign) and node.targets[0].id == "_PUBLIC"
)


def imports(name: str) -> list[tuple[int, str]]:
    """Line and dotted name of everything the module imports, wherever in its text, by statement or import_module."""
    found = []
    package = name.rsplit(".", 1)[0].split(".")
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            found += [(node.lineno, _origin(base, alias.name)) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            argument = node.args[0]
            text = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
            if isinstance(text, ast.Constant):
                found.append((node.lineno, text.value.rstrip(".")))
    return found


def _origin(base: str, name: str) -> str:
    if base == "specfast" and name in PUBLIC:
        return f"{PUBLIC[name]}.{name}"
    return f"{base}.{name}"


def module_of(dotted: str) -> str | None:
    """The module of ours that an imported name comes from; None if it is not ours."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        candidate = ".".join(parts[:length])
        if candidate in MODULES:
            return candidate
        if candidate in PACKAGES:
            return f"{candidate}.__init__"
    return None


def group(module: str) -> str:
    """The part of the house a module belongs to: errors, ops, models, ..."""
    return module.split(".")[1]


def test_every_part_has_arrows():
    unknown = {group(name) for name in MODULES} - set(ARROWS)
    assert not unknown, f"no arrows are drawn for {unknown}: add them here and in CONTRIBUTING.md"


@pytest.mark.parametrize("part", ARROWS)
def test_imports_follow_the_arrows(part):
    allowed = ARROWS[part] | {part}
    wrong = []
    for name in MODULES:
        if group(name) != part:
            continue
        for line, imported in imports(name):
            if imported.split(".")[0] != "specfast" or imported == "specfast.__version__":
                continue
            target = "_C" if imported.startswith("specfast._C") else group(module_of(imported))
            if target not in allowed:
                wrong.append(f"{MODULES[name].relative_to(ROOT)}:{line} imports {imported}")
    assert not wrong, f"{part} may import {sorted(allowed)}: " + "; ".join(wrong)


def test_kernels_is_never_imported_by_its_bare_name():
    sources = [*MODULES.values(), *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/**/*.py")]
    bare = re.compile(r"^\s*(?:import|from)\s+kernels\b", re.MULTILINE)
    assert not [str(path.relative_to(ROOT)) for path in sources if bare.search(path.read_text())]


def test_no_import_cycle():
    graph = {}
    for name in MODULES:
        targets = {module_of(imported) for _, imported in imports(name) if imported != "specfast.__version__"}
        graph[name] = targets - {None, name}
    done, path = set(), []

    def visit(name):
        assert name not in path, "import cycle: " + " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        done.add(path.pop())

    for name in graph:
        visit(name)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def test_native_sources_include_only_what_they_may():
    sources = [path for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert sources
    wrong = []
    for path in sources:
        folder = path.relative_to(ROOT / "csrc").parent.name
        for header in includes(path):
            ours = (ROOT / "csrc" / header).is_file()
            if header.startswith("pybind11/"):
                fits = path.name == "bindings.cpp"
            elif ours:
                fits = folder in ("", header.split("/")[0]) or header.startswith("common/")
            else:
                fits = "/" not in header  # the standard library, OpenMP; neither torch nor Python
                fits = fits and header not in ("Python.h",)
            if not fits:
                wrong.append(f"{path.relative_to(ROOT)} includes {header}")
    assert not wrong


def test_only_the_conftest_and_ci_know_the_shared_folder():
    knowing = {ROOT / "tests" / "conftest.py", ROOT / ".ci" / "run", Path(__file__).resolve()}
    path = re.compile(r"\.\.[/]shared\b|[\"']shared[\"']|SPECFAST_SHARED|" + re.escape(str(ROOT)))
    texts = [p for folder in ("specfast", "kernels", "csrc", "tests", "bench") for p in ROOT.glob(f"{folder}/**/*")]
    texts += [p for p in ROOT.iterdir() if p.suffix in (".md", ".py", ".toml", ".txt", ".in") or p.name == "Makefile"]
    wrong = []
    for file in texts:
        if file in knowing or file.suffix in (".pyc", ".so", ".npz") or not file.is_file():
            continue
        named = path.search(file.read_text(errors="replace"))
        if named and not (file.suffix == ".md" and named[0] == "SPECFAST_SHARED"):
            wrong.append(f"{file.relative_to(ROOT)}: {named[0]}")
    assert not wrong
