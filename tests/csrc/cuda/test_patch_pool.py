"""The CUDA patch_pool on the emulator against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from specfast.kernels import reference
from tests.csrc.cuda.conftest import Refused

pytestmark = pytest.mark.xdist_group("cuda_emulator")  # one process builds it

# Of the average, whose mean is about -0.5: summation order in float32; one rounding.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
CASES = {  # height, width, patch size, grid
    "windows-are-patches": (24, 40, 8, (3, 5)),
    "several-strips": (224, 64, 8, (28, 8)),
    "windows-of-two-vectors": (32, 208, 16, (2, 13)),
    "finer-than-vectors": (16, 32, 4, (4, 8)),
    "overlapping": (40, 56, 8, (28, 28)),
    "more-windows-than-pixels": (8, 8, 4, (11, 19)),
    "odd": (33, 45, 3, (4, 7)),
    "one-window-of-many-stages": (600, 64, 8, (1, 1)),
    "pixels": (5, 6, 1, (5, 6)),
    "strips-cut-patches": (240, 96, 48, (30, 4)),
}


def make(case, dtype, counts=(2, 1, 0, 3)):
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


def pool(emulator, image, index, cu_bands, patch_size, grid, valid=None, extent=None, **options):
    """Run on the memory behind a view of any strides that starts where its memory does."""
    bands, height, width = image.shape
    kept, windows = index.shape[1], grid[0] * grid[1]
    reach = sum(stride * (size - 1) for stride, size in zip(image.stride(), image.shape, strict=True)) + 1
    memory = torch.as_strided(image, (reach if image.numel() else 0,), (1,))
    return emulator.run(
        "patch_pool",
        {
            "image": memory,
            "index": index,
            "cu_bands": cu_bands,
            "valid": valid,
            "extent": extent,
        },
        {"patches": (bands, kept, patch_size**2), "average": (bands, windows), "maximum": (bands, windows)},
        image.dtype,
        bands=bands,
        height=height,
        width=width,
        stride_band=image.stride(0),
        stride_row=image.stride(1),
        stride_column=image.stride(2),
        samples=index.shape[0],
        kept=kept,
        patch_size=patch_size,
        grid_rows=grid[0],
        grid_columns=grid[1],
        **options,
    )


def assert_matches(actual, image, index, cu_bands, patch_size, grid, valid=None, extent=None):
    expected = reference.patch_pool(image.double(), index, cu_bands, patch_size, grid, valid, extent)
    for one, other, tolerance in zip(actual, expected, (0.0, TOLERANCE[image.dtype], 0.0), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference(emulator, case, dtype):
    arguments = make(case, dtype)
    assert_matches(pool(emulator, *arguments), *arguments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["all-valid", "masked"])
def test_matches_reference_with_extent(emulator, case, dtype, masked):
    image, index, cu_bands, patch_size, grid = make(case, dtype)
    valid, image = make_valid(image, cu_bands) if masked else (None, image)
    height, width = image.shape[1:]
    extent = torch.tensor([[height, width], [1, 1], [height, 2], [height - 3, max(1, width - 5)]])
    arguments = image, index, cu_bands, patch_size, grid, valid, extent
    assert_matches(pool(emulator, *arguments), *arguments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_matches_reference_with_mask(emulator, case, dtype):
    image, index, cu_bands, patch_size, grid = make(case, dtype)
    valid, image = make_valid(image, cu_bands)
    arguments = image, index, cu_bands, patch_size, grid, valid
    assert_matches(pool(emulator, *arguments), *arguments)


@pytest.mark.parametrize("masked", [False, True], ids=["all-valid", "masked"])
def test_order_of_threads_changes_no_bit(emulator, masked):
    image, index, cu_bands, patch_size, grid = make("several-strips", torch.bfloat16)
    valid, image = make_valid(image, cu_bands) if masked else (None, image)
    first, *others = (pool(emulator, image, index, cu_bands, patch_size, grid, valid, order=n) for n in (0, 1, 7))
    for other in others:
        assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("shift", [1, 4])
@pytest.mark.parametrize("name", ["image", "patches", "valid"])
def test_any_alignment(emulator, name, shift):
    image, index, cu_bands, patch_size, grid = make("windows-are-patches", torch.bfloat16)
    valid, image = make_valid(image, cu_bands)
    arguments = image, index, cu_bands, patch_size, grid, valid
    assert_matches(pool(emulator, *arguments, **{f"{name}_shift": shift}), *arguments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_strides(emulator, dtype):
    image, *rest = make("windows-are-patches", dtype)
    wide = torch.full((image.shape[0], 30, 50), torch.nan, dtype=dtype)
    wide[:, :24, :40] = image
    band_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    expected = pool(emulator, image, *rest)
    for view in (wide[:, :24, :40], band_last):
        assert not view.is_contiguous()
        for one, other in zip(pool(emulator, view, *rest), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_valid_pixel_that_is_not_finite_reaches_its_windows(emulator, value):
    image, *rest = make("windows-are-patches", torch.float32)
    image[0, 9, 17] = value
    image[4, 0, 0], image[4, 0, 1] = torch.inf, -torch.inf  # their sum is NaN, their maximum is not
    actual = pool(emulator, image, *rest)
    assert_matches(actual, image, *rest)
    assert actual[2][4, 0] == torch.inf


@pytest.mark.parametrize("samples", [1, 2, 31, 33, 70, 1100])
def test_finds_the_sample_of_every_band(emulator, samples):
    """Each sample keeps another patch, so that a wrong sample shows; every third has no bands."""
    counts = [b % 3 if samples > 2 else 1 for b in range(samples)]
    cu_bands = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    index = torch.arange(samples)[:, None] * 7 % 16
    image = torch.randn(sum(counts), 4, 4)
    arguments = image, index, cu_bands, 1, (1, 1)
    assert_matches(pool(emulator, *arguments), *arguments)


@pytest.mark.parametrize("counts", [(), (0,), (0, 0)])
def test_no_bands(emulator, counts):
    cu_bands = torch.tensor([0, *counts], dtype=torch.int32)
    index = torch.zeros(len(counts), 2, dtype=torch.int64)
    patches, average, maximum = pool(emulator, torch.empty(0, 8, 8), index, cu_bands, 4, (2, 2))
    assert patches.shape == (0, 2, 16)
    assert average.shape == maximum.shape == (0, 4)


def test_no_kept_patches(emulator):
    image, index, *rest = make("windows-are-patches", torch.float32)
    assert_matches(pool(emulator, image, index[:, :0], *rest), image, index[:, :0], *rest)


def test_values_that_leave_the_image_touch_no_other_memory(emulator):
    """They cannot be checked on the host, so the kernel makes their patches NaN and cuts their extents."""
    image, index, cu_bands, patch_size, grid = make("windows-are-patches", torch.float32)
    index[:, 1], index[:, 2], index[:, 3] = -1, 15, 2**32 + 3
    extent = torch.tensor([[10**12, 10**12], [-3, 0], [24, 41], [24, 40]])
    patches, average, _ = pool(emulator, image, index, cu_bands, patch_size, grid, extent=extent)
    assert patches[:, 1:4].isnan().all()
    assert (patches[:, 1:4].view(torch.int32) != -1).all()  # what the emulator poisons memory with is a NaN, too
    inside = torch.stack([extent[:, 0].clamp(1, 24), extent[:, 1].clamp(1, 40)], dim=1)
    expected = reference.patch_pool(image.double(), index[:, :1], cu_bands, patch_size, grid, extent=inside)
    torch.testing.assert_close(patches[:, :1].double(), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(average.double(), expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 7}, "patch_size must divide the image; got 7 for an image of 24 x 40"),
        ({"patch_size": 0}, "patch_size must divide the image; got 0"),
        ({"grid": (0, 3)}, r"grid must be positive; got \(0, 3\)"),
        ({"grid": (3, 5000)}, "up to 4096 rows and columns here; got 5000"),
        ({"image": torch.zeros(6, 0, 40)}, "image must have pixels; got 0 x 40"),
    ],
)
def test_refuses_sizes_it_cannot_do(emulator, changes, message):
    names = ("image", "index", "cu_bands", "patch_size", "grid")
    arguments = dict(zip(names, make("windows-are-patches", torch.float32), strict=True)) | changes
    with pytest.raises(Refused, match=message):
        pool(emulator, **arguments)


def test_widest_image_fits_the_smallest_shared_memory(emulator):
    """99 kB a block: compute capability 8.6, 8.9 and 12.0."""
    image, index = torch.randn(1, 2, 4096), torch.tensor([[5]])
    cu_bands, valid = torch.tensor([0, 1], dtype=torch.int32), torch.rand(1, 2, 4096) > 0.5
    arguments = image, index, cu_bands, 2, (1, 4095), valid
    assert_matches(pool(emulator, *arguments, shared_limit=99 * 1024), *arguments)


def test_refuses_other_types(emulator):
    with pytest.raises(Refused, match="expected float32, bfloat16 or float16; got float64"):
        pool(emulator, *make("pixels", torch.float64))
