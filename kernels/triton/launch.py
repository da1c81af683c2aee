"""What all Triton launchers share: where they can run, which configuration applies, and where the bands lie.

Nothing here reads a value from the device: every launch can be captured into a CUDA graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

INTERPRET = triton.knobs.runtime.interpret
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHARED_MEMORY = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448}  # bytes a block may have on the A100, H100, B200

if INTERPRET:
    # Triton 3.6 takes int() of one-element arrays, which NumPy 2.4 refuses; needed where a loop's bounds are loaded.
    from triton.runtime import interpreter

    def _patch_tensor(tensor, scope, patch=interpreter._patch_lang_tensor):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _patch_tensor

_architecture: str | None = None


def architecture(device: torch.device) -> str:
    """The file of kernels/configs that applies on a device."""
    if _architecture is not None:
        return _architecture
    if device.type != "cuda":
        return "sm_80"  # the interpreter: any will do
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"


@contextlib.contextmanager
def use_architecture(name: str) -> Iterator[None]:
    """Launch as for another architecture: for the tests, which compile for all of them without a device."""
    global _architecture
    before, _architecture = _architecture, name
    try:
        yield
    finally:
        _architecture = before


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of tl.dot: float32 uses TF32 exactly where torch's own float32 matmuls do."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def unsupported(*arguments) -> str | None:
    """Why no kernel here can take these arguments of an operator; None if nothing speaks against it."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    floating = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    for dtype in floating:
        if dtype not in DTYPES:
            return f"{str(dtype).removeprefix('torch.')} inputs"
    device = tensors[0].device
    if device.type == "cpu" and INTERPRET:
        return "bfloat16 in Triton's interpreter" if torch.bfloat16 in floating else None
    if device.type != "cuda":
        return f"tensors on {device.type}"
    if torch.version.hip is not None:
        return "an AMD GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}, below 8.0"
    # smaller chips of the same generations have less than the configurations are made for
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if shared < SHARED_MEMORY[architecture(device)]:
        return f"{shared} bytes of shared memory a block, below {SHARED_MEMORY[architecture(device)]}"
    return None


def as_bytes(valid: Tensor | None) -> Tensor | None:
    """A mask as a kernel takes it."""
    return None if valid is None else valid.contiguous().view(torch.uint8)


def sample_of_band(cu_bands: Tensor, bands: int) -> Tensor:
    """int32 [S]: the sample that each band belongs to."""
    positions = torch.arange(bands, device=cu_bands.device, dtype=torch.int32)
    return torch.searchsorted(cu_bands[1:].contiguous(), positions, right=True, out_int32=True)


class BandTiles(NamedTuple):
    """Tiles of at most ``block`` bands of one sample each; those beyond the last hold no band."""

    sample: Tensor  # int32 [tiles]
    start: Tensor  # int32 [tiles], first band
    end: Tensor  # int32 [tiles], one past the last band

    def __len__(self) -> int:
        return self.start.shape[0]


def band_tiles(cu_bands: Tensor, bands: int, block: int) -> BandTiles:
    """Cut every sample's bands into tiles; their number is bounded from the shapes, so nothing is read back."""
    samples = cu_bands.shape[0] - 1
    if samples == 0 or bands == 0:
        none = cu_bands.new_empty(0)
        return BandTiles(none, none, none)
    ends = torch.cumsum((cu_bands.diff() + (block - 1)) // block, dim=0, dtype=torch.int32)
    # a sample's last tile is the only one that need not be full
    tiles = torch.arange(bands // block + samples, device=cu_bands.device, dtype=torch.int32)
    sample = torch.searchsorted(ends, tiles, right=True, out_int32=True).clamp_(max=samples - 1)
    last = cu_bands[1:][sample]
    first = cu_bands[sample] + (tiles - (ends - ends.diff(prepend=ends.new_zeros(1)))[sample]) * block
    return BandTiles(sample, torch.minimum(first, last), torch.minimum(first + block, last))
