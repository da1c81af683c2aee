"""The CUDA contraction of hyper_embed on the emulator against float64."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from specfast.kernels import reference
from specfast.testing import assert_close, assert_unbiased
from tests.csrc.cuda.conftest import Refused

pytestmark = pytest.mark.xdist_group("cuda_emulator")  # one process builds it

DTYPES = [torch.bfloat16, torch.float16]
# Relative RMS: h is rounded once, its products with hidden and their sum once more; sums are rounded only at the end.
TOLERANCE = {torch.bfloat16: 3.5e-3, torch.float16: 5e-4}
TOLERANCE_OF_SUMS = {torch.bfloat16: 2.5e-3, torch.float16: 3e-4}


@dataclass(frozen=True)
class Case:
    bands: tuple[int, ...]
    tokens: int
    pixels: int = 64
    rank: int = 64
    width: int = 64

    def __str__(self):
        bands = "x".join(map(str, self.bands))
        return f"C{bands}-N{self.tokens}-P{self.pixels}-R{self.rank}-k{self.width}"

    def tensors(self, dtype) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        s = sum(self.bands)
        shapes = {
            "patches": (s, self.tokens, self.pixels),
            "factors_v": (s, self.rank, self.pixels),
            "hidden": (s, self.width),
        }
        scale = {"patches": 1.0, "factors_v": self.pixels**-0.5, "hidden": 0.5}
        tensors = {n: (torch.randn(shape, generator=generator) * scale[n]).to(dtype) for n, shape in shapes.items()}
        return tensors | {"cu_bands": torch.tensor([0, *itertools.accumulate(self.bands)], dtype=torch.int32)}


CASES = [
    Case((33, 16), 17),  # ragged, a tail token, two slices
    Case((5, 0, 20), 3, pixels=16, rank=16, width=16),  # an empty sample
    Case((17,), 16, pixels=80, rank=48, width=32),  # chunks of 64 and 16 pixels, a slice of half the ranks
    Case((9,), 2, pixels=256, rank=32, width=48),
    Case((40,), 5, pixels=48, rank=16, width=128),
    Case((18,), 4, pixels=128, rank=32, width=80),
    Case((1,), 1, pixels=16, rank=256, width=16),
]


def contract(emulator, tensors, case: Case, **options):
    samples, dtype = len(case.bands), tensors["patches"].dtype
    return emulator.run(
        "hyper_embed_moments",
        tensors,
        {"moments": (samples, case.tokens, case.rank, case.width), "sums": (samples, case.tokens, case.rank)},
        dtype,
        samples=samples,
        tokens=case.tokens,
        pixels=case.pixels,
        rank=case.rank,
        width=case.width,
        **options,
    )


def expected_of(tensors, case: Case):
    """Moments and sums in float64."""
    moments, sums = [], []
    for start, end in itertools.pairwise(tensors["cu_bands"].tolist()):
        x, v, g = (tensors[name][start:end].double() for name in ("patches", "factors_v", "hidden"))
        h = torch.einsum("crp,cnp->cnr", v, x)
        moments.append(torch.einsum("cnr,ck->nrk", h, g))
        sums.append(h.sum(dim=0))
    return torch.stack(moments), torch.stack(sums)


def assert_matches(actual, tensors, case):
    dtype = tensors["patches"].dtype
    moments, sums = expected_of(tensors, case)
    assert_close(actual[0], moments, TOLERANCE[dtype], "moments")
    assert_unbiased(actual[0], moments, TOLERANCE[dtype] / 4, "moments")
    assert_close(actual[1], sums, TOLERANCE_OF_SUMS[dtype], "sums")
    for token in range(case.tokens):  # each alone, so that a small one that is wrong does not hide behind the others
        assert_close(actual[0][:, token], moments[:, token], 2 * TOLERANCE[dtype], f"moments of token {token}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(emulator, case, dtype):
    tensors = case.tensors(dtype)
    assert_matches(contract(emulator, tensors, case), tensors, case)


@pytest.mark.parametrize("limit", [227, 163, 99], ids=lambda limit: f"{limit}kB")
def test_every_shared_memory(emulator, limit):
    """A ring of three steps, of two, and narrow slices: Hopper and Blackwell, A100, small GPUs."""
    case = Case((40,), 3, rank=32)
    tensors = case.tensors(torch.bfloat16)
    assert_matches(contract(emulator, tensors, case, shared_limit=limit * 1024), tensors, case)


def test_order_of_threads_changes_no_bit(emulator):
    case = Case((37, 3), 5, pixels=80, rank=32)
    tensors = case.tensors(torch.bfloat16)
    first, *others = (contract(emulator, tensors, case, order=order) for order in (0, 1, 7))
    for other in others:
        assert all(torch.equal(one, another) for one, another in zip(first, other, strict=True))


def test_moments_give_the_tokens_of_the_reference(emulator):
    """With the dense product that specfast.ops adds: the operator's definition, U generated first."""
    case = Case((20, 30), 6, pixels=16, rank=16, width=16)
    tensors = case.tensors(torch.float16)
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(*shape, generator=generator).double() for shape in ((24, 16, 16), (24, 16)))
    moments, sums = (out.double() for out in contract(emulator, tensors, case))
    tokens = moments.flatten(2) @ weight.flatten(1).T + sums @ bias.T
    wide = [tensors[name].double() for name in ("patches", "factors_v", "hidden")]
    assert_close(tokens, reference.hyper_embed(*wide, weight, bias, tensors["cu_bands"]), TOLERANCE[torch.float16])


def test_a_sample_does_not_see_its_neighbors(emulator):
    case = Case((7, 9, 5), 3, pixels=16, rank=16, width=16)
    tensors = case.tensors(torch.bfloat16)
    clean = contract(emulator, tensors, case)
    for name in ("patches", "factors_v", "hidden"):
        tensors[name][7:16] = torch.nan
    dirty = contract(emulator, tensors, case)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert other[1].isnan().all()


def test_no_samples_and_no_tokens(emulator):
    for case in (Case((), 4), Case((3,), 0)):
        moments, sums = contract(emulator, case.tensors(torch.bfloat16), case)
        assert moments.numel() == sums.numel() == 0


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case((2,), 1, pixels=40), "P must be a multiple of 16 up to 256 here; got 40"),
        (Case((2,), 1, pixels=272), "P must be a multiple of 16 up to 256 here; got 272"),
        (Case((2,), 1, rank=8), "R must be a multiple of 16 up to 256 here; got 8"),
        (Case((2,), 1, width=144), "k must be a multiple of 16 up to 128 here; got 144"),
    ],
    ids=lambda value: str(value) if isinstance(value, Case) else "",
)
def test_refuses_sizes_it_cannot_do(emulator, case, message):
    with pytest.raises(Refused, match=message):
        contract(emulator, case.tensors(torch.bfloat16), case)


@pytest.mark.parametrize("name", ["patches", "factors_v", "hidden"])
def test_refuses_what_is_not_aligned(emulator, name):
    case = Case((2,), 1)
    with pytest.raises(Refused, match=f"{name} must be aligned to 16 bytes"):
        contract(emulator, case.tensors(torch.bfloat16), case, **{f"{name}_shift": 1})
