"""What the numbers were measured on, and what it can do at most: versions, peak FLOP/s, bandwidth."""

from __future__ import annotations

import functools
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import specfast
from bench.timing import Clock

ROOT = Path(__file__).resolve().parents[1]


def device_name(device: torch.device) -> str:
    """The processor's or GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def slug(device: torch.device) -> str:
    """The device in a file's name: cpu, or nvidia-h200."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


@functools.cache
def commit() -> str:
    """Short hash of the checkout, with + where files differ from it; unknown outside of one."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    if not (found := git("rev-parse", "--short", "HEAD")):
        return "unknown"
    # results are written while the run goes on, so they do not make it another program
    return found + ("+" if git("status", "--porcelain", "--", ":!bench/results", ":!docs", ":!README.md") else "")


def versions(device: torch.device) -> dict:
    """What each row says of where it comes from."""
    found = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "specfast": specfast.__version__,
        "commit": commit(),
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
    return found


@dataclass(frozen=True)
class Peaks:
    """Highest rates seen: FLOP/s by dtype, and bytes/s of a copy, read and write together."""

    flops: dict[torch.dtype, float]
    bandwidth: float

    def floor_ms(self, flop: float, bytes_: float, dtype: torch.dtype) -> float:
        """Time below which work of this size cannot be done."""
        return 1e3 * max(flop / self.flops[dtype], bytes_ / self.bandwidth)


def measure_peaks(device: torch.device, dtypes: list[torch.dtype], *, quick: bool = False) -> Peaks:
    """Time a large matmul in each dtype and a large copy; the best of several, since they are ceilings."""
    clock = Clock(device)
    size = 8192 if device.type == "cuda" else (512 if quick else 3072)
    repeats = 20 if device.type == "cuda" else (2 if quick else 6)
    flops = {}
    for dtype in dict.fromkeys(dtypes):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        best = min(clock(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for _ in range(repeats + 1))
        flops[dtype] = 2 * size**3 / (best * 1e-3)
    numbers = 2**29 if device.type == "cuda" else 2 ** (22 if quick else 26)
    source = torch.rand(numbers, device=device)
    target = torch.zeros_like(source)
    best = min(clock(lambda: target.copy_(source)) for _ in range(repeats + 1))
    return Peaks(flops, 2 * source.nbytes / (best * 1e-3))
