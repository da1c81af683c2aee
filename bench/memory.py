"""Peak memory of one call, above what is allocated when it starts.

On a GPU, of torch's allocator. On Linux, of the process: the kernel's own high-water mark of resident memory, reset
before the call (so scratch memory of libraries and of native code counts, too). glibc is told meanwhile to return
every block of 256 kB and more when it is freed; otherwise freed blocks of earlier calls would hide what is allocated.
Against a list of tensors of known sizes it is right to within some MB (tests/bench/test_measure.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_RETURNED = 256 * 2**10
# where glibc's own adjustment ends once a block of 32 MB was freed, as happens in the first runs of any model
_USUAL_MMAP, _USUAL_TRIM = 32 * 2**20, 64 * 2**20


@dataclass
class Peak:
    """Bytes; None where they cannot be measured."""

    bytes: int | None = None


def roomy(first: Callable[[], T], second: Callable[[], T]) -> T:
    """The first call's result, or the second's where a GPU has no room for the first."""
    try:
        return first()
    except torch.OutOfMemoryError:
        pass  # what failed is only freed once its traceback is gone
    gc.collect()
    torch.cuda.empty_cache()
    return second()


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Fill the Peak it yields when the block ends."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    libc = _glibc()
    if libc is None:
        yield peak
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _RETURNED)
    libc.mallopt(_M_TRIM_THRESHOLD, _RETURNED)
    try:
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        yield peak
        peak.bytes = max(_status("VmHWM") - before, 0)
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
        libc.mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM)


def _glibc():
    """The C library, if it is glibc and the kernel lets a process reset its high-water mark."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt, libc.malloc_trim  # noqa: B018  (AttributeError where they are missing)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return libc


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])
