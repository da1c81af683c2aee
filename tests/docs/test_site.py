"""The site builds without a warning, and shows the public names of every package."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import specfast
from tests.docs.markdown import ROOT

pytestmark = pytest.mark.xdist_group("site")  # one process builds it


def listed() -> list[str]:
    """The packages whose public names the API reference shows."""
    return re.findall(r"<!-- api: ([\w.]+) -->", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))


def test_every_public_package_is_in_the_reference():
    packages = {f"specfast.{name}" for name in specfast.__all__ if inspect.ismodule(getattr(specfast, name))}
    assert packages
    assert packages <= set(listed())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason='the site needs pip install "specfast[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in ROOT.glob("docs/**/*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert pages <= built
    assert not (site / "hooks.py").exists()


def test_the_reference_shows_every_public_function_and_class(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    missing = []
    for package in ("specfast", *listed()):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                path = f"{thing.__module__}.{thing.__qualname__}"
                missing += [] if f'id="{path}"' in page else [path]
    assert not missing
    assert ":class:" not in page


def test_nothing_is_fetched_from_elsewhere(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://[^"]*"', page)
