"""patch_pool: the registered operator (native on CPUs) against its reference, and the reference against plain torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from specfast import _native, ops
from specfast.kernels import eager, reference
from specfast.testing import assert_close


@dataclass(frozen=True)
class Pool:
    bands: tuple[int, ...]
    size: tuple[int, int]
    patch: int
    kept: int
    grid: tuple[int, int] | None = None
    invalid: float = 0.0
    extent: tuple[tuple[int, int], ...] | None = None

    def __str__(self):
        bands, size = "+".join(map(str, self.bands)), "x".join(map(str, self.size))
        grid = "own" if self.grid is None else "x".join(map(str, self.grid))
        return f"C{bands}-{size}-p{self.patch}-grid{grid}-inv{self.invalid}"

    def arguments(self, dtype=torch.float32, device="cpu"):
        generator = torch.Generator().manual_seed(0)
        height, width = self.size
        samples, patches = len(self.bands), (height // self.patch) * (width // self.patch)
        image = torch.randn(sum(self.bands), height, width, generator=generator, dtype=torch.float64)
        index = torch.stack([torch.randperm(patches, generator=generator)[: self.kept] for _ in self.bands])
        cu_bands = torch.tensor([0, *itertools.accumulate(self.bands)], dtype=torch.int32)
        valid = extent = None
        if self.extent:
            extent = torch.tensor(self.extent)
            valid = torch.zeros(samples, height, width, dtype=torch.bool)
            for b, (rows, columns) in enumerate(self.extent):
                valid[b, :rows, :columns] = True
        if self.invalid:
            holes = torch.rand(samples, height, width, generator=generator) >= self.invalid
            holes[:, : self.patch, : self.patch] = False  # a window without any valid pixel
            valid = holes if valid is None else valid & holes
        image, index, cu_bands, valid, extent = (
            None if tensor is None else tensor.to(device)
            for tensor in (image.to(dtype), index, cu_bands, valid, extent)
        )
        return (image, index, cu_bands, self.patch), {"grid": self.grid, "valid": valid, "extent": extent}


POOLS = [
    Pool((3, 5), (32, 32), 8, 4),
    Pool((2, 1, 4), (24, 40), 4, 60),
    Pool((3,), (16, 48), 16, 2, invalid=0.4),
    Pool((2, 3), (32, 24), 8, 5, grid=(7, 5)),
    Pool((2, 3), (16, 16), 8, 4, grid=(28, 28), invalid=0.2),
    Pool((4, 2), (24, 24), 8, 3, grid=(3, 3), extent=((10, 10), (24, 17))),
    Pool((4, 0, 2), (16, 16), 8, 2, grid=(5, 2), invalid=0.3, extent=((16, 16), (9, 9), (3, 16))),
    Pool((1,), (1, 1), 1, 1),
    Pool((2,), (10, 15), 5, 0),
]


def reference_pool(args, kwargs):
    grid = kwargs["grid"] or tuple(side // args[3] for side in args[0].shape[-2:])
    return reference.patch_pool(*args, **kwargs | {"grid": grid})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_equals_reference(pool, dtype, device):
    args, kwargs = pool.arguments(dtype, device)
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6}.get(dtype, 1e-3)
    patches, average, maximum = ops.patch_pool(*args, **kwargs)
    expected = reference_pool(args, kwargs)
    assert torch.equal(patches, expected[0])
    assert torch.equal(maximum, expected[2])
    assert_close(average, expected[1], tolerance, "average")


def test_the_native_kernel_is_what_runs_on_cpus():
    if _native.load()[0] is None:
        pytest.skip(f"specfast._C is {_native.load()[1]}")
    (image, *rest), _ = POOLS[0].arguments()
    assert ops.choose_backend("patch_pool_fwd", image, *rest)[0] == "cpu"
    assert ops.choose_backend("patch_pool_fwd", image.double(), *rest)[0] == "eager"


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_instruction_set_agrees(capability, dtype, monkeypatch):
    native = _native.load()[0]
    order = ["baseline", "avx2", "avx512"]
    if native is None or order.index(capability) > order.index(native.cpu_capability()):
        pytest.skip(f"this machine cannot run {capability}")
    monkeypatch.setattr(_native, "extension", lambda: Pinned(native, capability))
    for pool in POOLS:
        args, kwargs = pool.arguments(dtype)
        for actual, expected in zip(ops.patch_pool(*args, **kwargs), reference_pool(args, kwargs), strict=True):
            assert_close(actual, expected, 2e-6 if dtype == torch.float32 else 1e-3)


@dataclass
class Pinned:
    native: object
    capability: str

    def patch_pool(self, **kwargs):
        return self.native.patch_pool(**kwargs, capability=self.capability)


@pytest.mark.parametrize("pool", [POOLS[2], POOLS[5], POOLS[6]], ids=str)
def test_reference_equals_loops(pool):
    """Windows and patches pixel by pixel, from the definition."""
    (image, index, cu_bands, p), kwargs = pool.arguments(torch.float64)
    patches, average, maximum = reference_pool((image, index, cu_bands, p), kwargs)
    height, width = pool.size
    gh, gw = pool.grid or (height // p, width // p)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        rows, columns = pool.extent[b] if pool.extent else pool.size
        valid = kwargs["valid"][b]
        for c, (i, j) in itertools.product(range(start, end), itertools.product(range(gh), range(gw))):
            window = [
                float(image[c, y, x])
                for y in range(i * rows // gh, -(-(i + 1) * rows // gh))
                for x in range(j * columns // gw, -(-(j + 1) * columns // gw))
                if valid[y, x]
            ]
            assert float(average[c, i * gw + j]) == pytest.approx(
                sum(window) / len(window) if window else 0.0, abs=1e-12
            )
            assert float(maximum[c, i * gw + j]) == max(window, default=0.0)
        for c, k in itertools.product(range(start, end), range(pool.kept)):
            y, x = (int(index[b, k]) // (width // p) * p, int(index[b, k]) % (width // p) * p)
            expected = torch.where(valid, image[c], 0.0)[y : y + p, x : x + p].flatten()
            assert torch.equal(patches[c, k], expected)


def test_reference_equals_plain_torch_pooling():
    args, kwargs = POOLS[3].arguments(torch.float64)
    image, index, _, p = args
    patches, average, maximum = reference_pool(args, kwargs)
    assert_close(average.view(5, 7, 5), F.adaptive_avg_pool2d(image, (7, 5)), 1e-14)
    assert torch.equal(maximum.view(5, 7, 5), F.adaptive_max_pool2d(image, (7, 5)))
    unfolded = F.unfold(image[:2, None], p, stride=p).mT  # [bands, N, P]
    assert torch.equal(patches[:2], unfolded[:, index[0]])


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_invalid_pixels_may_hold_anything(poison, device):
    args, kwargs = POOLS[2].arguments(device=device)
    expected = ops.patch_pool(*args, **kwargs)
    spoiled = torch.where(kwargs["valid"][0], args[0], poison)
    actual = ops.patch_pool(spoiled, *args[1:], **kwargs)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_any_stride(device):
    args, kwargs = POOLS[4].arguments(device=device)
    for strided in (
        args[0].transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([args[0], args[0] * 9], dim=-1)[..., 0],
        args[0][:1].expand(5, -1, -1),
    ):
        expected = ops.patch_pool(strided.contiguous(), *args[1:], **kwargs)
        actual = ops.patch_pool(strided, *args[1:], **kwargs)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[2], expected[2])
        assert_close(actual[1], expected[1], 0.0 if device == "cpu" else 1e-6)


@pytest.mark.parametrize(
    "pool", [Pool((2, 1), (4, 6), 2, 3, invalid=0.3), Pool((2,), (6, 6), 3, 4, grid=(4, 5))], ids=str
)
def test_gradcheck(pool):
    args, kwargs = pool.arguments(torch.float64)
    assert torch.autograd.gradcheck(
        lambda image: ops.patch_pool(image, *args[1:], **kwargs), args[0].requires_grad_(), nondet_tol=0
    )


def test_gradient_equals_references_with_extent():
    args, kwargs = POOLS[5].arguments(torch.float64)
    gradients = []
    for function in (lambda *a, **k: ops.patch_pool(*a, **k), lambda *a, **k: reference_pool(a, k)):
        image = args[0].clone().requires_grad_()
        outputs = function(image, *args[1:], **kwargs)
        sum((out * torch.linspace(1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outputs).backward()
        gradients.append(image.grad)
    assert_close(gradients[0], gradients[1], 1e-13)


@pytest.mark.parametrize("pool", [POOLS[0], POOLS[5], POOLS[6]], ids=str)
def test_opcheck_and_compile(pool):
    args, kwargs = pool.arguments()
    grid = kwargs["grid"] or tuple(side // args[3] for side in args[0].shape[-2:])
    full = (*args, grid, kwargs["valid"], kwargs["extent"])
    torch.library.opcheck(torch.ops.specfast.patch_pool_fwd.default, full)
    outputs = torch.ops.specfast.patch_pool_fwd(*full)
    torch.library.opcheck(torch.ops.specfast.patch_pool_bwd.default, (*map(torch.randn_like, outputs), *full))
    torch._dynamo.reset()
    compiled = torch.compile(ops.patch_pool, fullgraph=True, dynamic=True, backend="aot_eager")
    assert all(torch.equal(a, e) for a, e in zip(compiled(*args, **kwargs), outputs, strict=True))


@pytest.mark.parametrize("kept_again", [False, True])
@pytest.mark.parametrize(
    "pool", [*POOLS, Pool((2,), (13, 13), 13, 1, grid=(29, 3)), Pool((0, 3), (8, 8), 8, 1)], ids=str
)
def test_eager_gradient_equals_autograds(pool, kept_again):
    """Against autograd through the reference, patches kept up to three times."""
    (image, index, cu_bands, patch), kwargs = pool.arguments(torch.float64)
    if kept_again:
        index = torch.cat([index, index, index[:, :1]], dim=1)
    grid = kwargs["grid"] or tuple(side // patch for side in image.shape[-2:])
    rest = index, cu_bands, patch, grid, kwargs["valid"], kwargs["extent"]
    outputs = reference.patch_pool(image.requires_grad_(), *rest)
    generator = torch.Generator().manual_seed(5)
    gradients = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outputs]
    (expected,) = torch.autograd.grad(outputs, image, gradients)
    assert_close(eager.patch_pool_bwd(*gradients, image.detach(), *rest), expected, 1e-14)


def test_backward_calls_nothing_whose_result_may_vary():
    """torch's own backward of adaptive pooling scatters, on GPUs in any order."""
    (image, *rest), kwargs = POOLS[3].arguments(torch.float64)
    outputs = ops.patch_pool(image.requires_grad_(), *rest, **kwargs)
    with torch.profiler.profile() as profile:
        torch.autograd.grad(outputs, image, [torch.ones_like(out) for out in outputs])
    called = {event.key for event in profile.key_averages()}
    assert "specfast::patch_pool_bwd" in called
    assert not [name for name in called if "pool2d_backward" in name]


def test_the_second_derivative_is_refused():
    (image, *rest), kwargs = POOLS[0].arguments(torch.float64)
    _, average, _ = ops.patch_pool(image.requires_grad_(), *rest, **kwargs)
    (gradient,) = torch.autograd.grad(average.square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_results_do_not_depend_on_the_thread_count():
    args, kwargs = Pool((7, 9), (64, 64), 8, 16).arguments()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.patch_pool(*args, **kwargs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 7}, "patch_size must divide H=16 and W=16 of image; got 7"),
        ({"index": torch.tensor([[0, 4]])}, r"index must lie in 0\.\.3; got 0\.\.4"),
        ({"index": torch.tensor([[0]], dtype=torch.int32)}, "index must be int64; got torch.int32"),
        ({"grid": (0, 3)}, r"grid must be two positive sizes; got \(0, 3\)"),
        ({"valid": torch.ones(1, 16, 15, dtype=torch.bool)}, r"valid must be \[B, H, W\] with B=1, H=16, W=16"),
        ({"extent": torch.ones(1, 2)}, r"extent must be int64 \[1, 2\]; got torch.float32"),
        ({"extent": torch.tensor([[17, 16]])}, r"extent must lie in 1\.\.16 x 1\.\.16; got \[\[17, 16\]\]"),
        ({"extent": torch.tensor([[0, 5]]), "image": torch.rand(2, 16, 16).double()}, r"extent must lie in 1\.\.16"),
        ({"image": torch.zeros(2, 16, 16, dtype=torch.int16)}, "image must be floating point; got torch.int16"),
        ({"grid": (2.0, 3)}, r"grid must be two positive sizes; got \(2\.0, 3\)"),
        ({"patch_size": 8.0}, "patch_size must be an int; got 8.0"),
        ({"extent": [(10, 10)]}, "extent must be a tensor, got list"),
        ({"index": [[0, 3]]}, "index must be a tensor, got list"),
        ({"index": torch.tensor([[0, 3]], device="meta")}, "index must be on cpu to match image; got meta"),
        ({"cu_bands": torch.zeros(2, dtype=torch.int32, device="meta")}, "cu_bands must be on cpu .*; got meta"),
        ({"valid": torch.ones(1, 16, 16, dtype=torch.bool, device="meta")}, "valid must be on cpu .*; got meta"),
        ({"extent": torch.zeros(1, 2, dtype=torch.int64, device="meta")}, "extent must be on cpu .*; got meta"),
        ({"image": torch.zeros(2, 16, 16, device="meta")}, "index must be on meta to match image; got cpu"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {
        "image": torch.rand(2, 16, 16),
        "index": torch.tensor([[0, 3]]),
        "cu_bands": torch.tensor([0, 2], dtype=torch.int32),
        "patch_size": 8,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        ops.patch_pool(**arguments | change)
