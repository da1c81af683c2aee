"""Builds the distributions once: sources -> sdist -> wheel, as ``python -m build`` does, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("specfast", "kernels", "csrc", "tests", "bench")
JUNK = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc", "*.egg-info")


def run(*command, cwd: Path, check: bool = True, **environment) -> subprocess.CompletedProcess:
    """Run a command outside the checkout; on failure the error shows its whole output."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SPECFAST_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=variables | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done


def build(kind: str, source: Path, out: Path, **environment) -> tuple[Path, str]:
    """Build an sdist or a wheel without isolation, hence without a network; return the file and the log."""
    log = run(
        sys.executable,
        "-m",
        "build",
        f"--{kind}",
        "--no-isolation",
        "--outdir",
        out,
        source,
        cwd=out.parent,
        **environment,
    )
    (file,) = out.iterdir()
    return file, log.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A clean copy of the checkout's sources, as a clone would be."""
    folder = tmp_path_factory.mktemp("source") / "specfast"
    folder.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=JUNK)
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix != ".so" and not path.name.startswith("."):
            shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope="session")
def sdist(source, tmp_path_factory) -> Path:
    return build("sdist", source, tmp_path_factory.mktemp("sdist") / "out")[0]


@pytest.fixture(scope="session")
def unpacked(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture(scope="session")
def wheel(unpacked, tmp_path_factory) -> Path:
    """The wheel built from the sdist, with the compiler."""
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel") / "out")[0]


@pytest.fixture(scope="session")
def pure_build(unpacked, tmp_path_factory) -> tuple[Path, str]:
    """The wheel built from the sdist where there is no compiler, and the build's log."""
    tree = tmp_path_factory.mktemp("pure_source") / "specfast"
    shutil.copytree(unpacked, tree, ignore=shutil.ignore_patterns("build", "*.so"))
    out = tmp_path_factory.mktemp("pure") / "out"
    return build("wheel", tree, out, CC="/nonexistent/cc", CXX="/nonexistent/c++")


def unpack(wheel: Path, folder: Path) -> Path:
    shutil.unpack_archive(wheel, folder, format="zip")
    return folder


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder with the unpacked wheel, to be put on PYTHONPATH: it comes before any other specfast."""
    return unpack(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def installed_pure(pure_build, tmp_path_factory) -> Path:
    return unpack(pure_build[0], tmp_path_factory.mktemp("installed_pure"))


# An editable install of specfast in this environment would supply what the tested one lacks: do without its finder.
ONLY_FROM_PATH = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable___specfast")]
"""


@pytest.fixture
def python(tmp_path):
    """Call ``python(code, path, **environment)``: run code in a new interpreter, in an empty folder.

    With a path, the specfast in that folder is used and no other.
    """

    def call(code: str, path: Path | None = None, **environment) -> str:
        if path is not None:
            code = ONLY_FROM_PATH + code
            environment["PYTHONPATH"] = str(path)
        return run(sys.executable, "-c", code, cwd=tmp_path, **environment).stdout

    return call


@pytest.fixture
def command(tmp_path):
    """Call ``command("pip", ..., cwd=..., check=..., **environment)``: see run."""

    def call(*parts, cwd: Path | None = None, check: bool = True, **environment) -> str:
        return run(*parts, cwd=cwd or tmp_path, check=check, **environment).stdout

    return call
