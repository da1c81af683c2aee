"""Compiles for GPUs that are not here what the Triton launchers would launch.

Run in a process of its own, without TRITON_INTERPRET: ``python -m tests.kernels.harness`` reads requests from standard
input and writes a report, both JSON. The real launchers run on CPU tensors; instead of a launch, the exact signature,
constants, alignments and options are taken down and compiled, once each. A request is

    {"launch": "module:name", "architecture": "sm_90", "dtype": "bfloat16", "size": "base"}

and optionally ``"tf32": true`` and ``"override": {kernel: {...}}``. ``module.LAUNCHES[name](dtype, size)`` is a
generator that calls the launchers once between yields, each time with other numbers of samples, bands and tokens. The
report holds one entry a request: the request, the ``configs`` it asked for, and its ``kernels``, of each

    round (which of the generator's calls), kernel, constants, shared_bytes, registers, stack and local (bytes a
    thread; what does not fit the registers lies there), mma (the tensor-core instructions in the PTX), specialization
    (what Triton compiles a kernel for: it must be the same in every round)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TENSOR_CORES = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
GRID_LIMITS = (2**31 - 1, 65535, 65535)


def compile_kernels(requests: list[dict]) -> list[dict]:
    """Run the requests in a new process and return its report."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.harness"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, f"the compiling process failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout.splitlines()[-1])


class Compiler:
    """Stands in for ``JITFunction.run``: compiles each specialization it meets once and remembers what came out."""

    def __init__(self, architecture: str):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend

        self.target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
        self.backend = make_backend(self.target)
        self.compiled: dict[tuple, dict] = {}
        self.met: list[dict] = []

    def run(self, function, *args, grid, warmup, **kwargs):
        import triton
        from triton.runtime.jit import create_function_from_signature

        kwargs |= {"debug": False, "instrumentation_mode": triton.knobs.compilation.instrumentation_mode}
        bind = create_function_from_signature(function.signature, function.params, self.backend)
        bound, specialization, options = bind(*args, **kwargs)
        grid = grid(bound) if callable(grid) else grid
        name = function.fn.__name__
        assert all(0 < size <= limit for size, limit in zip(grid, GRID_LIMITS, strict=False)), f"{name}: grid {grid}"
        options, signature, constants, attributes = function._pack_args(
            self.backend, kwargs, bound, specialization, options
        )
        key = (name, str(specialization), str(options))
        if key not in self.compiled:
            source = triton.compiler.ASTSource(function, signature, constants, attributes)
            kernel = triton.compile(source, target=self.target, options=options.__dict__)
            names = [parameter.name for parameter in function.params]
            self.compiled[key] = {
                "kernel": name,
                "constants": {names[path[0]]: value for path, value in constants.items()}
                | {"num_warps": options.num_warps, "num_stages": options.num_stages},
                "shared_bytes": kernel.metadata.shared,
                "mma": [instruction for instruction in TENSOR_CORES if instruction in kernel.asm["ptx"]],
                "specialization": f"{specialization} {options}",
                **resource_usage(kernel.asm["cubin"]),
            }
        self.met.append(self.compiled[key])


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory a thread, as the driver would see them after loading."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": usage["REG"], "stack": usage["STACK"], "local": usage["LOCAL"]}


def report(requests: list[dict]) -> list[dict]:
    import torch
    import triton

    from specfast.kernels import configs
    from specfast.kernels.triton import launch

    assert not launch.INTERPRET, "unset TRITON_INTERPRET: an interpreted kernel cannot be compiled"
    compilers: dict[str, Compiler] = {}
    entries, ordinary_config = [], configs.config
    for request in requests:
        module, name = request["launch"].split(":")
        architecture = request["architecture"]
        if architecture not in compilers:
            compilers[architecture] = Compiler(architecture)
        compiler, asked, kernels = compilers[architecture], set(), []
        triton.runtime.JITFunction.run = lambda *args, c=compiler, **kwargs: c.run(*args, **kwargs)
        configs.config = lambda kernel, dtype, *args, to=asked, **kwargs: (
            to.add(f"{kernel} {dtype.itemsize * 8}") or ordinary_config(kernel, dtype, *args, **kwargs)
        )
        torch.backends.cuda.matmul.fp32_precision = "tf32" if request.get("tf32") else "ieee"
        with contextlib.ExitStack() as stack:
            stack.enter_context(launch.use_architecture(architecture))
            for kernel, values in request.get("override", {}).items():
                stack.enter_context(configs.override(kernel, **values))
            function = importlib.import_module(module).LAUNCHES[name]
            for number, _ in enumerate(function(getattr(torch, request["dtype"]), request["size"])):
                kernels += [{"round": number, **kernel} for kernel in compiler.met]
                compiler.met = []
        assert not compiler.met, f"{name} launches after its last yield"
        entries.append({"request": request, "configs": sorted(asked), "kernels": kernels})
    return entries


if __name__ == "__main__":
    print(json.dumps(report(json.load(sys.stdin))))
