"""The C++ patch_pool against the reference kernel, by every instruction set this processor has."""

from __future__ import annotations

import itertools

import pytest
import torch

from specfast import _native
from specfast.kernels import reference

_C, _reason = _native.load()
pytestmark = pytest.mark.skipif(_C is None, reason=f"specfast._C is {_reason}")

ORDER = ("baseline", "avx2", "avx512")
CAPABILITIES = ORDER[: ORDER.index(_C.cpu_capability()) + 1] if _C else ()
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}  # of the average: summation order; one rounding
CASES = {  # height, width, patch size, grid
    "windows-are-patches": (24, 40, 8, (3, 5)),
    "published-grid": (40, 56, 8, (28, 28)),
    "wide": (32, 208, 16, (2, 13)),
    "odd": (33, 45, 3, (4, 7)),
    "one-window": (7, 7, 7, (1, 1)),
    "pixels": (5, 6, 1, (5, 6)),
}


def pool(image, index, cu_bands, patch_size, grid, valid=None, extent=None, **options):
    """Call the extension on poisoned outputs."""
    bands, kept, windows = image.shape[0], index.shape[1], grid[0] * grid[1]
    shapes = (bands, kept, patch_size**2), (bands, windows), (bands, windows)
    outputs = [torch.full(shape, torch.nan, dtype=image.dtype) for shape in shapes]
    _C.patch_pool(
        image=image.data_ptr(),
        dtype=str(image.dtype).removeprefix("torch."),
        shape=tuple(image.shape),
        strides=image.stride(),
        index=index.data_ptr(),
        cu_bands=cu_bands.data_ptr(),
        samples=index.shape[0],
        kept=kept,
        patch_size=patch_size,
        grid=grid,
        valid=0 if valid is None else valid.data_ptr(),
        extent=0 if extent is None else extent.data_ptr(),
        patches=outputs[0].data_ptr(),
        average=outputs[1].data_ptr(),
        maximum=outputs[2].data_ptr(),
        **options,
    )
    return outputs


def make(case, dtype, counts=(3, 1, 0, 5)):
    """Random image [S, H, W], unsorted index [B, K] with a repeated patch, cu_bands, patch size and grid."""
    torch.manual_seed(0)
    height, width, patch_size, grid = CASES[case]
    cu_bands = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    patches = (height // patch_size) * (width // patch_size)
    index = torch.stack([torch.randperm(patches)[: max(1, patches // 3)] for _ in counts])
    index = torch.cat([index, index[:, :1]], dim=1)
    return torch.randn(sum(counts), height, width).to(dtype) - 0.5, index, cu_bands, patch_size, grid


def make_valid(image, cu_bands):
    """A mask per sample with holes, an empty half and an empty sample; and the image with NaN where it is False."""
    valid = torch.rand(len(cu_bands) - 1, *image.shape[1:]) > 0.3
    valid[0, : image.shape[1] // 2] = False
    valid[1] = False
    of_band = valid.repeat_interleave(cu_bands.diff(), dim=0)
    return valid, torch.where(of_band, image, torch.nan)


def assert_matches(actual, image, index, cu_bands, patch_size, grid, valid=None, extent=None):
    expected = reference.patch_pool(image.float(), index, cu_bands, patch_size, grid, valid, extent)
    for one, other, relative in zip(actual, expected, (0.0, TOLERANCE[image.dtype], 0.0), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=relative, atol=relative, equal_nan=True)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["all-valid", "masked"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "extent"])
def test_matches_reference(case, dtype, capability, masked, padded):
    image, index, cu_bands, patch_size, grid = make(case, dtype)
    valid, image = make_valid(image, cu_bands) if masked else (None, image)
    extent = None
    if padded:
        height, width = image.shape[1:]
        extent = torch.tensor([[height - b, max(1, width - 2 * b)] for b in range(len(cu_bands) - 1)])
    arguments = image, index, cu_bands, patch_size, grid, valid, extent
    assert_matches(pool(*arguments, capability=capability), *arguments)


@pytest.mark.parametrize("masked", [False, True], ids=["all-valid", "masked"])
def test_any_strides(masked):
    image, index, cu_bands, patch_size, grid = make("windows-are-patches", torch.float32)
    valid, image = make_valid(image, cu_bands) if masked else (None, image)
    wide = torch.full((image.shape[0], 30, 50), torch.nan)
    wide[:, 3:27, 4:44] = image
    band_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    expected = pool(image, index, cu_bands, patch_size, grid, valid)
    for view in (wide[:, 3:27, 4:44], band_last):
        for one, other in zip(pool(view, index, cu_bands, patch_size, grid, valid), expected, strict=True):
            assert torch.equal(one, other)


def test_threads_change_no_bit():
    image, *rest = make("published-grid", torch.float32, counts=(7, 30))
    one, *others = (pool(image, *rest, threads=threads) for threads in (1, 2, 3, 64))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_valid_pixel_that_is_not_finite_reaches_its_windows(value, capability):
    image, *rest = make("windows-are-patches", torch.float32)
    image[0, 9, 17] = value
    image[4, 0, 0], image[4, 0, 1] = torch.inf, -torch.inf  # their sum is NaN, their maximum is not
    actual = pool(image, *rest, capability=capability)
    assert_matches(actual, image, *rest)
    assert actual[2][4, 0] == torch.inf


@pytest.mark.parametrize("counts", [(), (0,), (0, 0)])
def test_no_bands(counts):
    cu_bands = torch.tensor([0, *counts], dtype=torch.int32)
    index = torch.zeros(len(counts), 2, dtype=torch.int64)
    patches, average, maximum = pool(torch.empty(0, 8, 8), index, cu_bands, 4, (2, 2))
    assert patches.shape == (0, 2, 16)
    assert average.shape == maximum.shape == (0, 4)


def test_no_kept_patches():
    image, index, *rest = make("windows-are-patches", torch.float32)
    assert_matches(pool(image, index[:, :0], *rest), image, index[:, :0], *rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": torch.tensor([[0, 15]] * 4)}, r"index must lie in \[0, 15\); got 15 at sample 0, position 1"),
        ({"index": torch.tensor([[0, -1]] * 4)}, r"index must lie in \[0, 15\); got -1"),
        ({"patch_size": 7}, "patch_size must divide the image; got 7 for an image of 24 x 40"),
        ({"patch_size": 0}, "patch_size must divide the image; got 0"),
        ({"grid": (0, 3)}, r"grid must be positive; got \(0, 3\)"),
        ({"cu_bands": torch.tensor([0, 3, 4, 4, 8], dtype=torch.int32)}, "cu_bands must run from 0 to the 9 bands"),
        ({"cu_bands": torch.tensor([0, 5, 4, 4, 9], dtype=torch.int32)}, "must not decrease; it does at sample 1"),
        ({"extent": torch.tensor([[24, 40]] * 3 + [[25, 40]])}, "extent must lie within .* got 25 x 40 at sample 3"),
        ({"extent": torch.tensor([[0, 40]] * 4)}, "extent must lie within"),
        ({"capability": "sse9"}, "capability: expected baseline, avx2 or avx512; got sse9"),
        ({"threads": -1}, "threads must be positive"),
    ],
)
def test_refuses_what_would_leave_the_arrays(changes, message):
    names = ("image", "index", "cu_bands", "patch_size", "grid")
    arguments = dict(zip(names, make("windows-are-patches", torch.float32), strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        pool(**arguments)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_any_byte_but_zero_is_true(capability):
    """A bool that is a view of other bytes; NaN is where the mask is False, and in one pixel that counts."""
    image, index, cu_bands, *rest = make("windows-are-patches", torch.float32)
    valid, image = make_valid(image, cu_bands)
    image[0, 23, 39] = torch.nan
    valid[0, 23, 39] = True
    bytes_of = (valid.byte() * torch.tensor([1, 2, 255, 128], dtype=torch.uint8).repeat(10)).view(torch.bool)
    expected = pool(image, index, cu_bands, *rest, valid, capability=capability)
    actual = pool(image, index, cu_bands, *rest, bytes_of, capability=capability)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_refuses_other_types():
    with pytest.raises(ValueError, match="image must be float32 or bfloat16 here; got float64"):
        pool(*make("pixels", torch.float64))


def test_describes_itself():
    assert _C.cpu_capability() in ORDER
    assert _C.openmp_threads() >= 1
    assert _C.openmp() or _C.openmp_threads() == 1
