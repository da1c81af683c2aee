"""What importing specfast needs, and what it must not need."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import specfast
from specfast import environment

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = sorted({module for _, modules in environment.EXTRAS.values() for module in modules.values()})
# A name that sys.modules holds as None cannot be imported, as if it were not installed.
BLOCK = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"
IMPORT_ALL = """
import importlib, pkgutil, specfast
for module in pkgutil.walk_packages(specfast.__path__, "specfast."):
    # subclasses of what an optional package brings are in the only modules that need it
    if module.name not in ("specfast._C", "specfast.__main__") and not module.name.endswith(".integrations.lightning"):
        importlib.import_module(module.name)
"""


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_import_loads_nothing_heavy(python):
    out = python(
        "import sys, specfast\n"
        f"print([name for name in {['torch', 'triton', 'scipy', *OPTIONAL]!r} if name in sys.modules])"
    )
    assert out.strip() == "[]"


def test_all_modules_import_without_loading_an_optional_package(python):
    loaded = python(f"{IMPORT_ALL}\nimport sys\nprint([n for n in {OPTIONAL!r} if n in sys.modules])")
    assert loaded.strip() == "[]"


def test_all_modules_import_without_the_optional_packages(python):
    assert python(BLOCK.format(names=OPTIONAL) + IMPORT_ALL) == ""


def test_report_names_what_is_absent_and_the_cure(python):
    out = python(BLOCK.format(names=OPTIONAL) + "from specfast import environment; print(environment.report())")
    for extra in environment.EXTRAS:
        assert f'pip install "specfast[{extra}]"' in out


def test_works_without_triton_and_gpu(python):
    code = BLOCK.format(names=["triton"]) + (
        "import specfast\n"
        "model = specfast.create_model('specaware_tiny_patch8', task='encoder')\n"
        "print(sum(parameter.numel() for parameter in model.parameters()) > 0)"
    )
    assert python(code, CUDA_VISIBLE_DEVICES="").strip() == "True"


def test_extension_can_be_left_alone_without_a_warning(python):
    code = "import warnings; warnings.simplefilter('error')\nfrom specfast import _native\n"
    out = python(code + "print(_native.extension(), _native.load()[1])", SPECFAST_NO_EXT="1")
    assert out.strip() == "None left out because SPECFAST_NO_EXT is set"


@pytest.mark.parametrize("name", specfast.__all__)
def test_public_names_exist(name):
    assert getattr(specfast, name) is not None


def test_extras_of_the_report_are_those_of_the_package():
    extras = pyproject()["project"]["optional-dependencies"]
    assert set(environment.EXTRAS) == set(extras) - {"all", "docs", "test", "dev"}
    for extra, (_, packages) in environment.EXTRAS.items():
        listed = {requirement for line in extras[extra] for requirement in _packages(line, extras)}
        assert listed == set(packages)


def _packages(requirement: str, extras: dict) -> set[str]:
    name, chosen = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", requirement).groups()
    if name != "specfast":
        return {name}
    return {package for extra in chosen.split(",") for line in extras[extra] for package in _packages(line, extras)}


def test_extra_named_in_a_message_exists():
    extras = pyproject()["project"]["optional-dependencies"]
    named = {
        extra
        for path in (ROOT / "specfast").rglob("*.py")
        for group in re.findall(r"specfast\[([\w,]+)\]", path.read_text())
        for extra in group.split(",")
    }
    assert named
    assert named <= set(extras)


def test_every_environment_variable_is_in_the_table():
    used = set()
    for path in [ROOT / "setup.py", *(ROOT / "specfast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        if path.name == "environment.py":
            continue
        strings = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
        used |= {s for s in strings if isinstance(s, str) and re.fullmatch(r"SPECFAST_[A-Z_]+", s)}
    assert used == set(environment.VARIABLES)


def test_version_is_written_once():
    assert "version" not in pyproject()["project"]
    written = re.escape(f'"{specfast.__version__}"')
    holders = [p for p in [ROOT / "setup.py", *(ROOT / "specfast").rglob("*.py")] if re.search(written, p.read_text())]
    assert holders == [ROOT / "specfast" / "__init__.py"]


def test_torch_is_not_needed_to_build():
    assert not [name for name in pyproject()["build-system"]["requires"] if name.startswith("torch")]
    assert not re.search(r"^\s*(import|from) torch", (ROOT / "setup.py").read_text(), re.MULTILINE)
