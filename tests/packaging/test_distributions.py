"""What the sdist and the wheel hold, and that every kind of install imports and computes."""

from __future__ import annotations

import email
import re
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import specfast

pytestmark = pytest.mark.xdist_group("packaging")  # one process builds, the others need not

EXTENSION = f"specfast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
# Prints where specfast came from and pools one patch with the reference kernel: 0 + 1 + 2 + 3 over 4.
COMPUTE = """
import torch, specfast, specfast.ops
from specfast.kernels import reference
image = torch.arange(4.0).reshape(1, 2, 2)
arguments = image, torch.tensor([[0]]), torch.tensor([0, 1], dtype=torch.int32), 2
expected = reference.patch_pool(*arguments, grid=(1, 1))
for actual, value in zip(specfast.ops.patch_pool(*arguments), expected):
    torch.testing.assert_close(actual, value)
assert float(expected[1]) == 1.5
print(specfast.__file__, specfast.__version__, reference.__file__, sep="\\n")
"""


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def python_files(folder: Path, prefix: str) -> set[str]:
    return {f"{prefix}{path.relative_to(folder)}" for path in folder.rglob("*.py")}


def test_sdist_holds_all_sources(sdist, source):
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(p.relative_to(source)) for folder in ("csrc", "kernels", "specfast") for p in (source / folder).rglob("*")
    }
    wanted |= {"setup.py", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "specfast/py.typed"}
    assert wanted <= members
    assert not [name for name in members if name.endswith((".so", ".pyc"))]


def test_wheel_holds_the_package_and_nothing_else(wheel, source):
    held = names(wheel)
    code = python_files(source / "specfast", "specfast/") | python_files(source / "kernels", "specfast/kernels/")
    data = {"specfast/py.typed", "specfast/attributes.npz"}
    data |= {str(p.relative_to(source)) for p in (source / "specfast").glob("data/sensor_tables/*")}
    data |= {f"specfast/{p.relative_to(source)}" for p in (source / "kernels").glob("configs/*.json")}
    data |= {
        str(p.relative_to(source)) for p in (source / "specfast").rglob("*") if p.suffix in (".html", ".css", ".svg")
    }
    metadata = {name for name in held if name.startswith(f"specfast-{specfast.__version__}.dist-info/")}
    assert held - metadata == code | data | {EXTENSION}


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"specfast-{specfast.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        assert b"specfast = specfast.cli:main" in archive.read(f"{folder}/entry_points.txt")
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert metadata["Version"] == specfast.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert "torch>=2.11" in metadata.get_all("Requires-Dist")


def test_wheel_without_a_compiler_says_so_once(pure_build, wheel):
    pure, log = pure_build
    assert names(pure) - {n for n in names(pure) if ".dist-info/" in n} == {
        name for name in names(wheel) if ".dist-info/" not in name
    } - {EXTENSION}
    assert log.count("specfast._C was not built") == 1
    assert "install a C++17 compiler" in log


def test_extension_left_out_on_purpose(unpacked, tmp_path, command):
    out = tmp_path / "out"
    log = command(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, unpacked, SPECFAST_NO_EXT="1"
    )
    (wheel,) = out.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert EXTENSION not in names(wheel)
    assert "was not built" not in log


def test_installed_wheel_computes(installed, python):
    file, version, kernels = python(COMPUTE, installed).splitlines()
    assert Path(file).parent == installed / "specfast"
    assert Path(kernels).parent == installed / "specfast" / "kernels" / "reference"
    assert version == specfast.__version__


def test_installed_extension_loads(installed, python):
    out = python("from specfast import _native; print(_native.extension().__file__)", installed)
    assert out.strip() == str(installed / EXTENSION)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_installed_extension_holds_cuda_kernels_and_needs_no_cuda_library(installed, python):
    """Of the toolkit it may need nothing at run time: everything it loads is the platform's own."""
    code = """
from specfast import _native
module = _native.extension()
print(module.cuda_built(), *module.cuda_architectures())
print(*sorted({line.split("/")[-1].split(".so")[0].strip() for line in open("/proc/self/maps") if ".so" in line}))
"""
    built, libraries = python(code, installed).splitlines()
    assert built == "True sm_80 sm_90a sm_100 compute_100"
    if torch.version.cuda is None:  # else torch loads them
        assert not re.findall(r"libcuda\S*|libnv\S*", libraries)


def test_installed_pure_wheel_computes_and_says_once_what_is_missing(installed_pure, python):
    use_twice = "from specfast import _native\nassert _native.extension() is None\nassert _native.extension() is None\n"
    out = python(COMPUTE + use_twice, installed_pure)
    assert out.count("RuntimeWarning: specfast._C") == 1
    assert "no working C++17 compiler" in out  # the cause
    assert "pip install ." in out  # the cure


def test_broken_extension_is_named_and_does_without(installed_pure, tmp_path, python):
    (tmp_path / "broken" / "specfast").mkdir(parents=True)
    (tmp_path / "broken" / EXTENSION).write_bytes(b"not a library")
    code = f"""
import specfast
specfast.__path__.append({str(tmp_path / "broken" / "specfast")!r})
from specfast import _native
module, reason = _native.load()
print(module, reason)
"""
    out = python(code, installed_pure)
    assert out.startswith("None built, but does not load here")
    assert EXTENSION.split("/")[1] in out


def test_runs_from_a_clone_without_installing(source, command):
    out = command(sys.executable, "-c", COMPUTE, cwd=source, SPECFAST_NO_EXT="1")
    assert Path(out.splitlines()[-1]).parent == source / "kernels" / "reference"


def test_foreign_kernels_package_beside_an_install_is_left_alone(installed_pure, tmp_path, python):
    (tmp_path / "site" / "kernels" / "reference").mkdir(parents=True)
    (tmp_path / "site" / "specfast").symlink_to(installed_pure / "specfast")
    out = python("import specfast.kernels; print(*specfast.kernels.__path__)", tmp_path / "site")
    assert str(tmp_path / "site" / "kernels") not in out.split()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lenient", "strict", "compat"])
def test_editable_install(source, tmp_path, command, mode):
    """In a fresh environment that sees this one's packages (but for its specfast) through a .pth file."""
    tree, environment = tmp_path / "tree", tmp_path / "venv"
    command("cp", "-r", source, tree)
    command(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    site = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    packages = sysconfig.get_path("purelib")
    (site / "parent.pth").write_text(packages + "\n")
    pip = (python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-input")
    command(*pip, "--config-settings", f"editable_mode={mode}", "--editable", tree)
    file, version, kernels = command(python, "-c", COMPUTE).splitlines()
    assert Path(file).is_relative_to(tree)
    assert version == specfast.__version__
    assert Path(kernels).resolve().parent == tree / "kernels" / "reference"
    assert command(environment / "bin" / "specfast", "--version").strip() == f"specfast {specfast.__version__}"
