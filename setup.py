"""Build: the Python packages, kernels/ mapped into specfast.kernels, and the optional C++ extension specfast._C.

Everything declarative lies in pyproject.toml. SPECFAST_NO_EXT=1 leaves the extension out on purpose; without a working
C++17 compiler it is left out as well, and the log says so. Where nvcc is found (CUDA_HOME, PATH) the extension gets the
kernels of csrc/cuda, for the architectures in SPECFAST_CUDA_ARCHS; SPECFAST_NO_CUDA=1 leaves them out on purpose.
"""

import copy
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KERNELS = sorted(init.parent.name for init in ROOT.glob("kernels/*/__init__.py"))
MSVC = sys.platform == "win32"
OPENMP_FLAGS = ["/openmp"] if MSVC else ["-fopenmp"]
CUDA_ARCHITECTURES = "80 90a 100"  # A100 and what else is Ampere or Ada; Hopper; Blackwell, whose PTX serves the later
NVCC_FLAGS = ["-O3", "-std=c++17", "-Icsrc", "-Xcompiler=-fPIC,-fvisibility=hidden,-g0"]


def packages() -> list[str]:
    return find_packages(include=["specfast", "specfast.*"]) + [f"specfast.kernels.{name}" for name in KERNELS]


def extensions() -> list[Extension]:
    if _set("SPECFAST_NO_EXT"):
        return []
    headers = [path for pattern in ("*.h", "*.cu", "*.cuh") for path in ROOT.glob(f"csrc/**/{pattern}")]
    return [
        Extension(
            "specfast._C",
            sources=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.cpp")),
            depends=sorted(str(path.relative_to(ROOT)) for path in headers),
            include_dirs=["csrc"],
            language="c++",
            extra_compile_args=["/O2", "/std:c++17"] if MSVC else ["-O3", "-std=c++17", "-fvisibility=hidden", "-g0"],
        )
    ]


def _set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


class Nvcc:
    """The CUDA compiler, and what it can compile for."""

    def __init__(self, program: str):
        self.program = program
        # paths relative to the toolkit, which a wrapper script on PATH does not reveal
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cu")
            source.write_text("__global__ void probe() {}\n")
            plan = self.run("--dryrun", "-c", source, "-o", Path(folder, "probe.o"))
            self.architectures = [name for name in self.wanted() if self._compiles_for(name, source)]
        libraries = next((line for line in plan.splitlines() if "LIBRARIES=" in line), "")
        folders = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', libraries)]
        self.runtime = next((folder for folder in folders if (folder / "libcudart_static.a").is_file()), None)

    @staticmethod
    def find() -> str | None:
        homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
        programs = [str(Path(home, "bin", "nvcc")) for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
        return next(filter(None, map(shutil.which, programs)), None)

    @staticmethod
    def wanted() -> list[str]:
        return re.split(r"[\s,;]+", os.environ.get("SPECFAST_CUDA_ARCHS", CUDA_ARCHITECTURES).strip())

    def run(self, *arguments) -> str:
        """Run nvcc and return what it printed; RuntimeError with that if it fails."""
        done = subprocess.run(
            [self.program, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise RuntimeError(f"nvcc failed:\n{done.stdout.strip()}")
        return done.stdout

    def _compiles_for(self, architecture: str, source: Path) -> bool:
        try:
            self.run("-cubin", f"-arch=sm_{architecture}", source, "-o", source.with_suffix(".cubin"))
        except RuntimeError:
            return False
        return True

    def targets(self) -> list[str]:
        """Machine code for each architecture, and PTX of the last that later GPUs can run."""
        portable = [name for name in self.architectures if name.isdigit()]
        return [f"sm_{name}" for name in self.architectures] + [f"compute_{name}" for name in portable[-1:]]

    def compile(self, source: Path, target: Path) -> None:
        codes = [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in self.targets()]
        self.run(*NVCC_FLAGS, *codes, "-c", source, "-o", target)


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
                plain = copy.deepcopy(extension)
                if not MSVC and not _set("SPECFAST_NO_CUDA"):
                    self._add_cuda(extension)
                for one in (extension, plain):
                    one.depends.append(str(self._targets_file(extension)))
                try:
                    self.build_extension(extension)
                except Exception as error:
                    if extension.extra_objects == plain.extra_objects:
                        raise
                    self.warn(f"specfast._C does not link with its CUDA kernels, and is built without them: {error}")
                    self.build_extension(plain)
        except Exception as error:  # a missing compiler, header or library shows up as any of a dozen types
            self.extensions = []
            self.warn(
                f"specfast._C was not built ({type(error).__name__}: {error}). The package works without it, with "
                "slower CPU operators. To build it, install a C++17 compiler and install again; "
                "SPECFAST_NO_EXT=1 leaves it out without this warning."
            )

    def _add_cuda(self, extension: Extension) -> None:
        """Compile csrc/cuda and link it in, its runtime statically so that there is nothing to load; or say why not."""
        program = Nvcc.find()
        if program is None or not self._compiles("int main() { return 0; }", []):
            self.announce("specfast._C is built without CUDA kernels: no nvcc on CUDA_HOME or PATH", level=logging.INFO)
            return
        folder = Path(self.build_temp, "cuda").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        objects = {source: folder / f"{source.stem}.o" for source in sorted(ROOT.glob("csrc/cuda/*.cu"))}
        try:
            nvcc = Nvcc(program)
            if not nvcc.architectures:
                raise RuntimeError(f"this nvcc compiles for none of {', '.join(nvcc.wanted())}")
            if nvcc.runtime is None:
                raise RuntimeError("libcudart_static.a is not in the toolkit")
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(nvcc.compile, objects.keys(), objects.values()))
        except (OSError, RuntimeError) as error:
            self.warn(
                f"specfast._C is built without CUDA kernels: {error}\nSPECFAST_NO_CUDA=1 leaves them out quietly."
            )
            return
        if nvcc.architectures != nvcc.wanted():
            missing = ", ".join(sorted(set(nvcc.wanted()) - set(nvcc.architectures)))
            self.warn(f"specfast._C has no CUDA kernels for {missing}, which this nvcc does not know.")
        extension.extra_objects += [str(path) for path in objects.values()]
        extension.extra_compile_args.append(f'-DSPECFAST_WITH_CUDA="{" ".join(nvcc.targets())}"')
        extension.library_dirs.append(str(nvcc.runtime))
        extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
        # Hidden, or the runtime's names would bind to those of the other CUDA runtime that torch brings.
        extension.extra_link_args.append("-Wl,--exclude-libs,ALL")

    @staticmethod
    def _targets_file(extension: Extension) -> Path:
        """A file that is newer than an extension built for other CUDA targets, which must be linked again."""
        targets = next((flag for flag in extension.extra_compile_args if flag.startswith("-DSPECFAST_WITH_CUDA")), "")
        file = ROOT / "build" / "cuda_targets"
        if not file.is_file() or file.read_text() != targets:
            file.parent.mkdir(exist_ok=True)
            file.write_text(targets)
        return file

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
