"""setup.py with and without a CUDA compiler, on a package of one C++ and one CUDA file."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
#include <Python.h>
#ifdef SPECFAST_WITH_CUDA
int blocks_of_probe();
#else
int blocks_of_probe() { return 0; }
#define SPECFAST_WITH_CUDA ""
#endif
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
PyMODINIT_FUNC PyInit__C() {
  blocks_of_probe();  // the runtime is there, with or without a driver
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "targets", SPECFAST_WITH_CUDA);
  return module;
}
"""
KERNEL = """
#include <cuda_runtime.h>
__global__ void probe_kernel() {}
int blocks_of_probe() {
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, probe_kernel, 32, 0);
  return blocks;
}
"""
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
pytestmark = needs_compiler


@pytest.fixture
def build(tmp_path, command):
    """Call ``build(kernel, **environment)``: build in place; return the log, and what the module was built for.

    Later calls find the sources and what was built of them as they lie.
    """

    def call(kernel: str = KERNEL, **environment) -> tuple[str, str]:
        tree = tmp_path / "tree"
        if not tree.exists():
            (tree / "csrc" / "cuda").mkdir(parents=True)
            (tree / "specfast").mkdir()
            shutil.copy(ROOT / "setup.py", tree)
            (tree / "csrc" / "bindings.cpp").write_text(MODULE)
            (tree / "csrc" / "cuda" / "probe.cu").write_text(kernel)
        log = command(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, **environment)
        file = tree / "specfast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        code = (
            "import importlib.util\n"
            f"specification = importlib.util.spec_from_file_location('_C', {str(file)!r})\n"
            "module = importlib.util.module_from_spec(specification)\n"
            "specification.loader.exec_module(module)\n"
            "print(module.targets)"
        )
        return log, command(sys.executable, "-c", code).strip()

    return call


@needs_nvcc
def test_builds_for_the_chosen_architectures_that_nvcc_knows(build):
    log, targets = build(SPECFAST_CUDA_ARCHS="80, 90a,999")
    assert targets == "sm_80 sm_90a compute_80"
    assert "no CUDA kernels for 999, which this nvcc does not know" in log


@needs_nvcc
def test_says_when_no_architecture_is_left(build):
    log, targets = build(SPECFAST_CUDA_ARCHS="999")
    assert targets == ""
    assert "is built without CUDA kernels: this nvcc compiles for none of 999" in log


@needs_nvcc
def test_source_that_does_not_compile_costs_only_the_cuda_kernels(build):
    log, targets = build("this is no C++", SPECFAST_CUDA_ARCHS="80")
    assert targets == ""
    assert "is built without CUDA kernels: nvcc failed" in log
    assert "was not built" not in log


@needs_nvcc
def test_objects_that_do_not_link_cost_only_the_cuda_kernels(build):
    log, targets = build(KERNEL + 'extern "C" int PyInit__C() { return 0; }', SPECFAST_CUDA_ARCHS="80")
    assert targets == ""
    assert "does not link with its CUDA kernels" in log


@needs_nvcc
def test_links_again_where_only_the_targets_change(build):
    assert build(SPECFAST_NO_CUDA="1")[1] == ""  # as before nvcc was installed
    assert build(SPECFAST_CUDA_ARCHS="80")[1] == "sm_80 compute_80"
    assert build(SPECFAST_CUDA_ARCHS="90a")[1] == "sm_90a"
    assert build(SPECFAST_NO_CUDA="1")[1] == ""


def test_broken_compiler_costs_only_the_cuda_kernels(build, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho no license\nexit 1\n")
    nvcc.chmod(0o755)
    log, targets = build(CUDA_HOME=str(tmp_path))
    assert targets == ""
    assert log.count("is built without CUDA kernels: nvcc failed:\nno license") == 1


def test_left_out_on_purpose_without_a_word(build):
    log, targets = build(SPECFAST_NO_CUDA="1")
    assert targets == ""
    assert "CUDA" not in log
