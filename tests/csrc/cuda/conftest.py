"""The kernels of csrc/cuda built twice: by the host's compiler for the emulator, and by nvcc for every architecture."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
EMULATOR = Path(__file__).parent / "emulator"
KERNELS = [ROOT / "csrc" / "cuda" / f"{name}.cu" for name in ("patch_pool", "hyper_embed", "flat_buffer")]
HOPPER = 227 * 1024  # bytes of shared memory a block may have


class Refused(Exception):
    """The launcher refused its arguments."""


class Emulator:
    """Runs an operator's launcher and kernel on the host; see emulator/run.cpp."""

    def __init__(self, program: Path, folder: Path):
        self.program, self.folder = program, folder

    def run(self, operator: str, tensors: dict, outputs: dict, dtype: torch.dtype, order: int = 0, **values):
        """Return the outputs, given as {name: shape} or {name: (shape, dtype)}; an input of that name is updated.

        ``order`` says in which order threads run (emulator/block.h).
        """
        outputs = {n: o if len(o) == 2 and isinstance(o[1], torch.dtype) else (o, dtype) for n, o in outputs.items()}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, tensor in tensors.items():
            if tensor is not None:
                (self.folder / f"{name}.bin").write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for name, (shape, of) in outputs.items():
            if name not in tensors:
                (self.folder / f"{name}.bin").write_bytes(bytes(torch.Size(shape).numel() * of.itemsize))
        values = {"shared_limit": HOPPER, "dtype": str(dtype).removeprefix("torch."), "order": order, **values}
        done = subprocess.run(
            [self.program, operator, self.folder, *(f"{name}={value}" for name, value in values.items())],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0"},
        )
        if done.returncode == 2:
            raise Refused(done.stderr)
        assert done.returncode == 0, f"{operator} on the emulator ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return [self._read(name, *what) for name, what in outputs.items()]

    def _read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        data = bytearray((self.folder / f"{name}.bin").read_bytes())
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def _compile(*arguments, out: Path) -> str:
    """Compile to ``out``; return the error output, empty on success."""
    done = subprocess.run([*map(str, arguments), "-o", str(out)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr


@pytest.fixture(scope="session")
def emulator_program(tmp_path_factory) -> Path:
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler ({compiler}) to build the emulator with")
    out = tmp_path_factory.mktemp("emulator") / "run"
    flags = [
        "-std=c++17",
        "-O1",
        "-g1",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        f"-I{EMULATOR}",
        f"-I{ROOT / 'csrc'}",
        "-x",
        "c++",
    ]
    sources = [EMULATOR / "run.cpp", *KERNELS]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    errors = _compile(compiler, *flags, *sanitizers, *sources, out=out)
    if "asan" in errors or "sanitize" in errors:
        pytest.skip(f"{compiler} has no address sanitizer here: {errors.strip().splitlines()[-1]}")
    assert not errors, errors
    return out


@pytest.fixture
def emulator(emulator_program, tmp_path) -> Emulator:
    return Emulator(emulator_program, tmp_path / "case")


ARCHITECTURES = ("80", "90a", "100")


@pytest.fixture(scope="session")
def cubins(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Machine code by (kernel, architecture), compiled with setup.py's choice of nvcc and flags."""
    specification = importlib.util.spec_from_file_location("specfast_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        specification.loader.exec_module(setup)
    program = setup.Nvcc.find()
    if program is None:
        pytest.skip("no nvcc on CUDA_HOME or PATH")
    folder = tmp_path_factory.mktemp("cubins")
    found = {(path.stem, name): folder / f"{path.stem}_{name}.cubin" for path in KERNELS for name in ARCHITECTURES}

    def build(kernel: str, architecture: str) -> str:
        code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        source = ROOT / "csrc" / "cuda" / f"{kernel}.cu"
        flags = [f"-I{ROOT / 'csrc'}", *setup.NVCC_FLAGS, code, "-Werror", "all-warnings", "-cubin"]
        return _compile(program, *flags, source, out=found[kernel, architecture])

    with ThreadPoolExecutor(2) as pool:
        errors = "".join(pool.map(lambda key: build(*key), found))
    assert not errors, errors
    return found


@pytest.fixture(scope="session")
def cuobjdump():
    """Call ``cuobjdump(file, *flags)``; the program comes with the toolkit and with Triton."""
    folders = [Path(program).parent for program in [shutil.which("nvcc")] if program]
    triton = importlib.util.find_spec("triton")
    if triton is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    path = os.pathsep.join(map(str, [*folders, os.environ["PATH"]]))
    program = shutil.which("cuobjdump", path=path)
    if program is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("no cuobjdump and nvdisasm, neither beside nvcc nor in Triton")

    def call(file: Path, *flags: str) -> str:
        environment = {**os.environ, "PATH": path}
        return subprocess.run(
            [program, *flags, file], env=environment, check=True, capture_output=True, text=True
        ).stdout

    return call
