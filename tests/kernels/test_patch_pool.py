"""patch_pool's Triton launchers against the reference: patches and maxima bit by bit, the rest closely."""

from __future__ import annotations

import pytest
import torch

from specfast.kernels import configs, eager, reference
from specfast.kernels import triton as kernels
from specfast.testing import assert_close
from tests.kernels.conftest import DEVICE, DTYPES
from tests.ops.conftest import TOLERANCE
from tests.ops.test_patch_pool import Pool

POOLS = [
    Pool((1, 2), (8, 24), 8, 2),  # windows are patches: one read
    Pool((1, 0, 1), (12, 40), 4, 30),  # more patches in a row than one tile holds; all of them kept
    Pool((2,), (16, 32), 16, 1, invalid=0.4),
    Pool((2, 1), (10, 15), 5, 4, invalid=0.3),
    Pool((2, 1), (16, 24), 8, 5, grid=(5, 7)),  # windows that overlap
    Pool((1, 1), (8, 8), 4, 4, grid=(9, 13), invalid=0.2),  # more windows than pixels in a row
    Pool((2, 0, 1), (24, 24), 8, 3, grid=(3, 3), extent=((10, 10), (24, 24), (24, 17))),
    Pool((2, 2), (16, 16), 8, 2, grid=(5, 2), invalid=0.3, extent=((9, 9), (3, 16))),
    Pool((1,), (1, 1), 1, 1),
    Pool((2,), (10, 15), 5, 0),
    Pool((0, 0), (8, 8), 4, 2),
    Pool((1,), (64, 64), 64, 1, grid=(8, 8)),
]
SMALL = [POOLS[0], POOLS[3], POOLS[5], POOLS[7]]


def arguments(pool: Pool, dtype: torch.dtype = torch.float32) -> list:
    """All arguments of the launchers, on the device."""
    (image, index, cu_bands, patch), kwargs = pool.arguments(dtype, DEVICE)
    grid = kwargs["grid"] or tuple(side // patch for side in image.shape[-2:])
    return [image, index, cu_bands, patch, grid, kwargs["valid"], kwargs["extent"]]


def outgoing(outputs, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype).to(DEVICE, dtype)
        for out in outputs
    ]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_equals_reference(pool, dtype):
    given = arguments(pool, dtype)
    outputs = kernels.patch_pool_fwd(*given)
    expected = reference.patch_pool(*given)
    assert all(out.is_contiguous() and out.dtype == dtype for out in outputs)
    assert torch.equal(outputs[0], expected[0])
    assert torch.equal(outputs[2], expected[2])
    assert_close(outputs[1], expected[1], TOLERANCE[dtype], "average")

    exact = [given[0].double(), *given[1:]]
    expected = eager.patch_pool_bwd(*outgoing(outputs), *exact)
    dimage = kernels.patch_pool_bwd(*outgoing(outputs, dtype), *given)
    assert dimage.dtype == dtype
    assert_close(dimage, expected, TOLERANCE[dtype], "dimage")


@pytest.mark.parametrize("pool", SMALL, ids=str)
def test_gradient_is_that_of_the_reference(pool):
    """Against autograd through the specification, not only the eager backward."""
    image, *rest = arguments(pool, torch.float64)
    outputs = reference.patch_pool(image.requires_grad_(), *rest)
    (expected,) = torch.autograd.grad(outputs, image, outgoing(outputs))
    single = [gradient.float() for gradient in outgoing(outputs)]
    assert_close(kernels.patch_pool_bwd(*single, image.detach().float(), *rest), expected, 2e-6)


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_a_patch_may_be_kept_several_times(grid):
    pool = Pool((2, 1), (16, 16), 8, 4, grid=grid)
    image, _, *rest = arguments(pool)
    index = torch.tensor([[2, 2, 0, 2, 1], [3, 3, 3, 3, 3]], device=DEVICE)
    outputs, expected = kernels.patch_pool_fwd(image, index, *rest), reference.patch_pool(image, index, *rest)
    assert torch.equal(outputs[0], expected[0])
    gradients = outgoing(outputs)
    expected = eager.patch_pool_bwd(*gradients, image.double(), index, *rest)
    single = [gradient.float() for gradient in gradients]
    assert_close(kernels.patch_pool_bwd(*single, image, index, *rest), expected, 2e-6)


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_what_is_no_patch_gives_nan_and_gets_no_gradient(grid, monkeypatch):
    """The values of index cannot be checked before a launch; what the allocator leaves must not show."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: new_empty(*args, **kwargs).zero_())
    image, _, *rest = arguments(Pool((2, 1), (16, 16), 8, 4, grid=grid))
    index = torch.tensor([[-1, 2, 4, 2**40, 0], [3, -(2**40), 3, 1, 4]], device=DEVICE)
    known = (index >= 0) & (index < 4)
    outputs = kernels.patch_pool_fwd(image, index, *rest)
    expected = reference.patch_pool(image, torch.where(known, index, 0), *rest)
    of_band = known[torch.tensor([0, 0, 1], device=DEVICE)]
    assert outputs[0][~of_band].isnan().all()
    assert torch.equal(outputs[0][of_band], expected[0][of_band])
    assert torch.equal(outputs[2], expected[2])
    gradients = [gradient.float() for gradient in outgoing(outputs)]
    dimage = kernels.patch_pool_bwd(*gradients, image, index, *rest)
    gradients[0] = torch.where(of_band[..., None], gradients[0], 0.0)
    expected = eager.patch_pool_bwd(*gradients, image, torch.where(known, index, 0), *rest)
    assert_close(dimage, expected, 2e-6)


@pytest.mark.parametrize("grid", [None, (3, 5)])
def test_ties_nan_and_infinities_go_where_torch_sends_them(grid):
    image, *rest = arguments(Pool((4,), (16, 16), 8, 4, grid=grid), torch.float64)
    image = image.round().clamp(-1, 1)  # ties everywhere
    image[1, 3, 4] = image[1, 3, 7] = image[1, 12, 1] = torch.nan
    image[2] = -torch.inf
    image[3, 5, 5] = torch.inf
    outputs = reference.patch_pool(image.requires_grad_(), *rest)
    actual = kernels.patch_pool_fwd(image.detach().float(), *rest)
    for a, e in zip(actual, outputs, strict=True):
        torch.testing.assert_close(a, e.detach().float(), rtol=1e-6, atol=1e-6, equal_nan=True)
    dmaximum = outgoing(outputs)[2]
    (expected,) = torch.autograd.grad(outputs[2], image, dmaximum)
    none = [torch.zeros_like(out, dtype=torch.float32) for out in outputs[:2]]
    dimage = kernels.patch_pool_bwd(*none, dmaximum.float(), image.detach().float(), *rest)
    torch.testing.assert_close(dimage, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [POOLS[2], POOLS[5]], ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_invalid_pixels_may_hold_anything(pool, poison):
    image, *rest = given = arguments(pool)
    valid = rest[4][torch.arange(len(pool.bands)).repeat_interleave(torch.tensor(pool.bands)).to(DEVICE)]
    spoiled = torch.where(valid, image, poison)
    assert not torch.isfinite(spoiled).all()
    outputs = kernels.patch_pool_fwd(*given)
    assert all(torch.equal(a, e) for a, e in zip(kernels.patch_pool_fwd(spoiled, *rest), outputs, strict=True))
    gradients = outgoing(outputs, torch.float32)
    dimage = kernels.patch_pool_bwd(*gradients, spoiled, *rest)
    assert torch.equal(dimage, kernels.patch_pool_bwd(*gradients, *given))
    assert not dimage[~valid].any()


@pytest.mark.parametrize("pool", [POOLS[0], POOLS[4]], ids=str)
def test_any_stride(pool):
    image, index, cu_bands, *rest = arguments(pool)
    outputs = kernels.patch_pool_fwd(image, index, cu_bands, *rest)
    gradients = outgoing(outputs, torch.float32)
    dimage = kernels.patch_pool_bwd(*gradients, image, index, cu_bands, *rest)
    # bands lie whole patches apart, rows do not
    wide = torch.full((image.shape[0], image.shape[1] + 8, image.shape[2] + 5), torch.nan, device=DEVICE)
    wide[:, 1:-7, 2:-3] = image
    every_other = torch.stack([index, -index], dim=-1)[..., 0]
    for strided in (
        wide[:, 1:-7, 2:-3],
        image.transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([image, image * torch.nan], dim=-1)[..., 0],
    ):
        assert not strided.is_contiguous()
        given = (strided, every_other, cu_bands, *rest)
        actual = kernels.patch_pool_fwd(*given)
        assert torch.equal(actual[0], outputs[0])
        assert torch.equal(actual[2], outputs[2])
        # how pixels lie over a warp, and so the order of the sum, depends on the strides
        assert_close(actual[1], outputs[1], 1e-6)
        assert_close(kernels.patch_pool_bwd(*gradients, *given), dimage, 1e-6)
    expanded = [gradient[:, :1].expand_as(gradient) for gradient in gradients]
    expected = kernels.patch_pool_bwd(*(e.contiguous() for e in expanded), image, index, cu_bands, *rest)
    assert torch.equal(kernels.patch_pool_bwd(*expanded, image, index, cu_bands, *rest), expected)


@pytest.mark.parametrize("pool", SMALL, ids=str)
def test_two_runs_are_bitwise_equal(pool):
    given = arguments(pool)
    first, second = kernels.patch_pool_fwd(*given), kernels.patch_pool_fwd(*given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    gradients = outgoing(first, torch.float32)
    assert torch.equal(kernels.patch_pool_bwd(*gradients, *given), kernels.patch_pool_bwd(*gradients, *given))


def test_other_tiles_compute_the_same():
    for pool in (POOLS[3], POOLS[7]):
        given = arguments(pool)
        outputs = kernels.patch_pool_fwd(*given)
        gradients = outgoing(outputs, torch.float32)
        dimage = kernels.patch_pool_bwd(*gradients, *given)
        with (
            configs.override("patch_links", BLOCK_Q=2),
            configs.override("patch_windows", BLOCK_W=4, BLOCK_X=2),
            configs.override("patch_pool_fwd", BLOCK_PIXELS=128),
            configs.override("patch_pool_bwd", BLOCK_PIXELS=1),
            configs.override("patch_gather", BLOCK_PIXELS=1),
        ):
            others = kernels.patch_pool_fwd(*given)
            assert torch.equal(others[0], outputs[0])
            assert torch.equal(others[2], outputs[2])
            assert_close(others[1], outputs[1], 1e-6)
            assert_close(kernels.patch_pool_bwd(*gradients, *given), dimage, 1e-6)


@pytest.mark.parametrize("pool", [POOLS[2], POOLS[7]], ids=str)
def test_nothing_is_read_back_to_the_host(pool, nothing_is_read_back):
    given = arguments(pool)
    outputs = kernels.patch_pool_fwd(*given)
    kernels.patch_pool_bwd(*map(torch.ones_like, outputs), *given)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """An image of more than 2^31 pixels, of which the last band is looked at."""
    side, bands = 1024, 2100
    image = torch.zeros(bands, side, side, dtype=torch.float16, device=DEVICE)
    image[-1] = torch.randn(side, side, device=DEVICE)
    index = torch.tensor([[0, 5, 16383]], device=DEVICE)
    cu_bands = torch.tensor([0, bands], dtype=torch.int32, device=DEVICE)
    last = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    for grid in ((128, 128), (28, 28)):
        outputs = kernels.patch_pool_fwd(image, index, cu_bands, 8, grid, None, None)
        expected = kernels.patch_pool_fwd(image[-1:], index, last, 8, grid, None, None)
        assert all(torch.equal(a[-1:], e) for a, e in zip(outputs, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_gradient_offsets_beyond_32_bits():
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free device memory")
    side, bands = 1024, 2100
    image = torch.zeros(bands, side, side, dtype=torch.float16, device=DEVICE)
    image[-1] = torch.randn(side, side, device=DEVICE)
    index = torch.tensor([[0, 5, 16383]], device=DEVICE)
    cu_bands = torch.tensor([0, bands], dtype=torch.int32, device=DEVICE)
    last = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    for grid in ((128, 128), (28, 28)):
        shapes = (bands, 3, 64), *[(bands, grid[0] * grid[1])] * 2
        gradients = [torch.randn(shape, dtype=torch.float16, device=DEVICE) for shape in shapes]
        actual = kernels.patch_pool_bwd(*gradients, image, index, cu_bands, 8, grid, None, None)[-1:]
        of_last = [gradient[-1:] for gradient in gradients]
        expected = kernels.patch_pool_bwd(*of_last, image[-1:], index, last, 8, grid, None, None)
        assert torch.equal(actual, expected)
        del actual


def test_unsupported_says_why():
    image, index, cu_bands, _, *rest = arguments(Pool((2, 3), (16, 16), 8, 3))
    assert kernels.unsupported("patch_pool_fwd", image, index, cu_bands, 64, *rest) is None
    gradients = (image, image, image)
    for name, leading in (("patch_pool_fwd", ()), ("patch_pool_bwd", gradients)):
        assert kernels.unsupported(name, *leading, image, index, cu_bands, 65, *rest) == "patches of side 65, over 64"
        doubles = [tensor.double() for tensor in (*leading, image)]
        assert kernels.unsupported(name, *doubles, index, cu_bands, 8, *rest) == "float64 inputs"
    assert (kernels.unsupported("patch_pool_fwd", image.bfloat16(), index, cu_bands, 8, *rest) is None) == (
        torch.bfloat16 in DTYPES
    )
