"""Build: the Python packages, kernels/ mapped into specfast.kernels, and the optional C++ extension specfast._C.

Everything declarative lies in pyproject.toml. SPECFAST_NO_EXT=1 leaves the extension out on purpose; without a working
C++17 compiler it is left out as well, and the log says so.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KERNELS = sorted(init.parent.name for init in ROOT.glob("kernels/*/__init__.py"))
MSVC = sys.platform == "win32"
OPENMP_FLAGS = ["/openmp"] if MSVC else ["-fopenmp"]


def packages() -> list[str]:
    return find_packages(include=["specfast", "specfast.*"]) + [f"specfast.kernels.{name}" for name in KERNELS]


def extensions() -> list[Extension]:
    if os.environ.get("SPECFAST_NO_EXT", "0") not in ("", "0"):
        return []
    return [
        Extension(
            "specfast._C",
            sources=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp")),
            depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")),
            include_dirs=["csrc"],
            language="c++",
            extra_compile_args=["/O2", "/std:c++17"] if MSVC else ["-O3", "-std=c++17", "-fvisibility=hidden", "-g0"],
        )
    ]


class BuildOptionalExtension(build_ext):
    """Build what the machine's compiler can build; a failure leaves a pure-Python package that says so."""

    def build_extensions(self):
        try:
            import pybind11

            for extension in self.extensions:
                extension.include_dirs.append(pybind11.get_include())
                if self._compiles("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }", OPENMP_FLAGS):
                    extension.extra_compile_args += OPENMP_FLAGS
                    extension.extra_link_args += [] if MSVC else OPENMP_FLAGS
                self.build_extension(extension)
        except Exception as error:  # a missing compiler, header or library shows up as any of a dozen types
            self.extensions = []
            self.warn(
                f"specfast._C was not built ({type(error).__name__}: {error}). The package works without it, with "
                "slower CPU operators. To build it, install a C++17 compiler and install again; "
                "SPECFAST_NO_EXT=1 leaves it out without this warning."
            )

    def _compiles(self, source: str, flags: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "probe.cpp")
            file.write_text(source)
            try:
                objects = self.compiler.compile([str(file)], output_dir=folder, extra_postargs=flags)
                self.compiler.link_executable(
                    objects, str(Path(folder, "probe")), extra_postargs=[] if MSVC else flags, target_lang="c++"
                )
            except Exception:
                return False
        return True


setup(
    packages=packages(),
    package_dir={f"specfast.kernels.{name}": f"kernels/{name}" for name in KERNELS},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOptionalExtension},
)
