"""specfast.ops.native.cuda: against the eager backend on a GPU, and through the emulator where there is none."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from specfast import _native, ops
from specfast.ops import hyper_embed, patch_pool
from specfast.testing import assert_close, relative_rms

_C = _native.load()[0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def embed_inputs(dtype, device="cpu", bands=(20, 0, 33), tokens=9, pixels=16, rank=32, hidden=16, width=24):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "patches": (sum(bands), tokens, pixels),
        "factors_v": (sum(bands), rank, pixels),
        "hidden": (sum(bands), hidden),
        "weight": (width, rank, hidden),
        "bias": (width, rank),
    }
    tensors = {n: (torch.randn(s, generator=generator) * 0.3).to(device, dtype) for n, s in shapes.items()}
    return tensors | {"cu_bands": torch.tensor([0, *itertools.accumulate(bands)], dtype=torch.int32, device=device)}


def pool_inputs(dtype, device="cpu", size=(32, 48), patch=8, bands=(3, 0, 4), masked=True):
    generator = torch.Generator().manual_seed(0)
    patches = (size[0] // patch) * (size[1] // patch)
    index = torch.stack([torch.randperm(patches, generator=generator)[: patches // 3] for _ in bands])
    valid = torch.rand(len(bands), *size, generator=generator) > 0.3
    extent = torch.tensor([[size[0] - b, size[1] - 2 * b] for b in range(len(bands))])
    return {
        "image": torch.randn(sum(bands), *size, generator=generator).to(device, dtype),
        "index": index.to(device),
        "cu_bands": torch.tensor([0, *itertools.accumulate(bands)], dtype=torch.int32, device=device),
        "patch_size": patch,
        "valid": valid.to(device) if masked else None,
        "extent": extent.to(device) if masked else None,
    }


def read(address: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(ctypes.string_at(address, count * dtype.itemsize)), dtype=dtype)


class EmulatedExtension:
    """Has the CUDA functions of specfast._C, and runs them on the emulator: addresses in, addresses out."""

    def __init__(self, emulator):
        self.emulator = emulator

    def cuda_problem(self) -> str:
        return ""

    def _run(self, operator, tensors, outputs, addresses, dtype, **values):
        results = self.emulator.run(operator, tensors, outputs, dtype, **values)
        for name, result in zip(outputs, results, strict=True):
            data = result.contiguous().view(torch.uint8).numpy().tobytes()
            ctypes.memmove(addresses[name], data, len(data))

    def cuda_patch_pool(self, *, dtype, shape, strides, samples, kept, patch_size, grid, stream, **addresses):
        dtype = getattr(torch, dtype)
        (bands, height, width), windows = shape, grid[0] * grid[1]
        reach = sum(stride * (size - 1) for stride, size in zip(strides, shape, strict=True)) + 1
        counts = {
            "image": (reach, dtype),
            "index": (samples * kept, torch.int64),
            "cu_bands": (samples + 1, torch.int32),
            "valid": (samples * height * width, torch.bool),
            "extent": (samples * 2, torch.int64),
        }
        self._run(
            "patch_pool",
            {name: read(addresses[name], *what) for name, what in counts.items() if addresses[name]},
            {"patches": (bands, kept, patch_size**2), "average": (bands, windows), "maximum": (bands, windows)},
            addresses,
            dtype,
            **dict(zip(("bands", "height", "width"), shape, strict=True)),
            **dict(zip(("stride_band", "stride_row", "stride_column"), strides, strict=True)),
            **dict(zip(("grid_rows", "grid_columns"), grid, strict=True)),
            samples=samples,
            kept=kept,
            patch_size=patch_size,
        )

    def cuda_hyper_embed_moments(self, *, dtype, samples, tokens, pixels, rank, width, stream, **addresses):
        dtype = getattr(torch, dtype)
        cu_bands = read(addresses["cu_bands"], samples + 1, torch.int32)
        bands = int(cu_bands[-1])
        counts = {"patches": bands * tokens * pixels, "factors_v": bands * rank * pixels, "hidden": bands * width}
        self._run(
            "hyper_embed_moments",
            {"cu_bands": cu_bands, **{name: read(addresses[name], count, dtype) for name, count in counts.items()}},
            {"moments": (samples, tokens, rank, width), "sums": (samples, tokens, rank)},
            addresses,
            dtype,
            samples=samples,
            tokens=tokens,
            pixels=pixels,
            rank=rank,
            width=width,
        )


@pytest.fixture
def cuda_on_the_emulator(emulator, monkeypatch):
    """The backend module on CPU tensors, its kernels on the emulator."""
    from specfast.ops.native import cuda

    monkeypatch.setattr(_native, "extension", lambda: EmulatedExtension(emulator))
    monkeypatch.setattr(cuda, "_stream", lambda _: 0)
    return cuda


@pytest.mark.xdist_group("cuda_emulator")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all-valid", "masked"])
def test_patch_pool_equals_eager(cuda_on_the_emulator, dtype, masked):
    from specfast.kernels import eager

    given = pool_inputs(dtype, masked=masked)
    arguments = (
        *(given[n] for n in ("image", "index", "cu_bands", "patch_size")),
        (5, 6),
        given["valid"],
        given["extent"],
    )
    expected = eager.patch_pool_fwd(arguments[0].double(), *arguments[1:])
    tolerances = (0.0, torch.finfo(dtype).eps if dtype != torch.float32 else 1e-6, 0.0)
    for one, other, tolerance in zip(
        cuda_on_the_emulator.patch_pool_fwd(*arguments), expected, tolerances, strict=True
    ):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.xdist_group("cuda_emulator")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_hyper_embed_equals_eager(cuda_on_the_emulator, dtype, strided):
    from specfast.kernels import eager

    tensors = list(embed_inputs(dtype).values())
    if strided:
        tensors[:3] = [torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0] for t in tensors[:3]]
        tensors[3] = tensors[3].mT.contiguous().mT
    expected = eager.hyper_embed_fwd(*(t.double() for t in tensors[:-1]), tensors[-1], "reassociated")
    plain = eager.hyper_embed_fwd(*tensors, "reassociated")
    actual = cuda_on_the_emulator.hyper_embed_fwd(*tensors, "reassociated")
    for one, other, e in zip(actual, plain, expected, strict=True):
        assert one.shape == e.shape
        assert one.dtype == dtype
        assert relative_rms(one, e) <= 2 * relative_rms(other, e)


@pytest.mark.xdist_group("cuda_emulator")
def test_says_what_it_cannot_do(cuda_on_the_emulator):
    cuda = cuda_on_the_emulator
    assert cuda.unsupported("patch_pool_fwd", torch.zeros(1)) == "tensors on cpu"

    def embed(form="reassociated", dtype=torch.bfloat16, **sizes):
        tensors = {name: tensor.to("meta") for name, tensor in embed_inputs(dtype, **sizes).items()}
        return cuda._unsupported_inputs("hyper_embed_fwd", *tensors.values(), form)

    assert embed() is None
    assert embed("direct") == "form 'direct'"
    assert embed(dtype=torch.float32) == "torch.float32 inputs"
    assert embed(pixels=36) == "P=36, which is not a multiple of 16 up to 256"
    assert embed(rank=272) == "R=272, which is not a multiple of 16 up to 256"
    assert embed(hidden=144) == "k=144, which is not a multiple of 16 up to 128"

    def pool(dtype=torch.bfloat16, size=(32, 48), grid=(4, 6)):
        given = pool_inputs(dtype, size=size, bands=(1,))
        return cuda._unsupported_inputs("patch_pool_fwd", *list(given.values())[:4], grid, None, None)

    assert pool() is None
    assert pool(dtype=torch.float64) == "torch.float64 inputs"
    for large in ({"size": (8, 4104)}, {"grid": (1, 4097)}):
        assert pool(**large) == "an image or grid of more than 4096 rows or columns"


@pytest.mark.skipif(_C is None or not _C.cuda_built(), reason="specfast._C holds no CUDA kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
@pytest.mark.parametrize("operator", ["patch_pool", "hyper_embed"])
def test_without_a_gpu_the_error_names_operator_and_cause(operator, monkeypatch):
    from specfast.ops.native import cuda

    monkeypatch.setattr(cuda, "_stream", lambda _: 0)
    assert _C.cuda_problem().startswith("cudaError")
    arguments = {
        "patch_pool": [*list(pool_inputs(torch.float32).values())[:4], (4, 6), None, None],
        "hyper_embed": [*embed_inputs(torch.bfloat16).values(), "reassociated"],
    }
    with pytest.raises(RuntimeError, match=rf"{operator}: .* failed: cudaError"):
        getattr(cuda, f"{operator}_fwd")(*arguments[operator])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(_C is None or not _C.cuda_built(), reason="specfast._C holds no CUDA kernels")
class TestOnTheDevice:
    """What only hardware can show; sizes of the base model, and those that cut tiles."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("masked", [False, True], ids=["all-valid", "masked"])
    @pytest.mark.parametrize("grid", [None, (28, 28), (5, 7)], ids=str)
    @pytest.mark.parametrize("patch", [8, 4, 3, 16])
    def test_patch_pool(self, patch, grid, masked, dtype):
        size = {8: (224, 224), 4: (48, 80), 3: (33, 45), 16: (512, 512)}[patch]
        given = pool_inputs(dtype, "cuda", size, patch, bands=(11, 0, 30), masked=masked)
        with ops.use_backend("eager", strict=True):
            expected = patch_pool(**given | {"image": given["image"].double()}, grid=grid)
        with ops.use_backend("cuda", strict=True):
            actual, again = patch_pool(**given, grid=grid), patch_pool(**given, grid=grid)
        tolerances = (0.0, torch.finfo(dtype).eps if dtype != torch.float32 else 2e-6, 0.0)
        for one, two, other, tolerance in zip(actual, again, expected, tolerances, strict=True):
            assert torch.equal(one, two)
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    @pytest.mark.parametrize(
        "sizes",
        [
            {"bands": (202, 100), "tokens": 196, "pixels": 64, "rank": 64, "hidden": 64, "width": 768},
            {"bands": (17, 0, 425, 1), "tokens": 33, "pixels": 256, "rank": 48, "hidden": 32},
            {"bands": (40, 3), "tokens": 5, "pixels": 16, "rank": 16, "hidden": 128},
            {"bands": (9,), "tokens": 1, "pixels": 80, "rank": 256, "hidden": 80},
        ],
        ids=str,
    )
    def test_hyper_embed(self, sizes, dtype):
        given = embed_inputs(dtype, "cuda", **sizes)
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        with ops.use_backend("eager", strict=True):
            expected = hyper_embed(**wide, form="reassociated")
            plain = hyper_embed(**given, form="reassociated")
        with ops.use_backend("cuda", strict=True):
            actual, again = (hyper_embed(**given, form="reassociated") for _ in range(2))
        assert torch.equal(actual, again)
        assert relative_rms(actual, expected) <= 2 * relative_rms(plain, expected)

    def test_gradients_through_the_saved_moments(self):
        given = embed_inputs(torch.bfloat16, "cuda", tokens=40, pixels=64, rank=64, hidden=64)
        gradients = []
        for backend in ("cuda", "eager"):
            leaves = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in given.items()}
            with ops.use_backend(backend):
                hyper_embed(**leaves, form="reassociated").float().square().sum().backward()
            gradients.append([leaf.grad for leaf in leaves.values() if leaf.requires_grad])
        for one, other in zip(*gradients, strict=True):
            assert_close(one, other, 1e-2)

    def test_other_streams_and_graphs(self):
        given = embed_inputs(torch.bfloat16, "cuda", tokens=40, pixels=64, rank=64, hidden=64)
        with ops.use_backend("cuda", strict=True):
            expected = hyper_embed(**given, form="reassociated")
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                on_side = hyper_embed(**given, form="reassociated")
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = hyper_embed(**given, form="reassociated")
            captured.zero_()
            graph.replay()
        assert torch.equal(on_side, expected)
        assert torch.equal(captured, expected)

    def test_addresses_beyond_32_bits(self):
        """Bands that lie 2^31 elements apart and more."""
        if torch.cuda.mem_get_info()[0] < 12 * 2**30:
            pytest.skip("needs 12 GiB of free device memory")
        memory = torch.empty(2**32 + 2**16, dtype=torch.bfloat16, device="cuda")
        image = torch.as_strided(memory, (3, 64, 64), (2**31, 64, 1))
        image.copy_(torch.randn(3, 64, 64, device="cuda"))
        index = torch.arange(64, device="cuda")[None]
        cu_bands = torch.tensor([0, 3], dtype=torch.int32, device="cuda")
        with ops.use_backend("cuda", strict=True):
            far, near = (patch_pool(i, index, cu_bands, 8) for i in (image, image.contiguous()))
        assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
