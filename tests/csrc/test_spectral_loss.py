"""The C++ passes of the reconstruction loss against the reference in float64, by every instruction set."""

from __future__ import annotations

import pytest
import torch

from specfast import _native
from specfast.kernels import reference
from specfast.testing import assert_close, assert_unbiased

_C, _reason = _native.load()
pytestmark = pytest.mark.skipif(_C is None, reason=f"specfast._C is {_reason}")

ORDER = ("baseline", "avx2", "avx512")
CAPABILITIES = ORDER[: ORDER.index(_C.cpu_capability()) + 1] if _C else ()
# bands, tokens, pixels: whole blocks, whole vectors, a partial one (for 4, 8 and 16 lanes), and next to nothing
SHAPES = [(202, 39, 64), (9, 5, 16), (17, 3, 25), (8, 4, 83), (3, 2, 1), (1, 1, 7)]
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = 2e-6  # every pass is float32 inside, whatever the types of its arguments


def name(dtype):
    return str(dtype).removeprefix("torch.")


class Sample:
    """Predictions and a bias, targets that are a slice of more tokens and NaN where they do not count."""

    def __init__(self, shape, dtype=torch.float32, target_dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        bands, tokens, pixels = shape
        self.prediction = torch.randn(shape, generator=generator).to(dtype)
        self.bias = torch.randn(bands, pixels, generator=generator).to(dtype)
        self.valid = torch.rand(tokens, pixels, generator=generator) > 0.3
        all_patches = torch.randn(bands, tokens + 3, pixels, generator=generator).mul_(3).to(target_dtype)
        self.target = all_patches[:, 3:]
        self.target.masked_fill_(~self.valid, torch.nan)

    def tile(self, prediction, **options):
        return {
            "prediction": prediction.data_ptr(),
            "dtype": name(prediction.dtype),
            "target": self.target.data_ptr(),
            "target_dtype": name(self.target.dtype),
            "shape": tuple(prediction.shape),
            "strides": (prediction.stride(0), self.target.stride(0)),
            "bias": self.bias.data_ptr(),
            "bias_stride": self.bias.stride(0),
        } | options

    def sums(self, **options):
        """Four planes, from poisoned ones."""
        sums = torch.zeros(4, *self.valid.shape)
        _C.pixel_sums(
            **self.tile(self.prediction, **options),
            sums=sums.data_ptr(),
            plane=self.valid.numel(),
            charbonnier=sums[3].data_ptr(),
        )
        return sums

    def loss(self, sums, capability=""):
        loss = torch.full((3,), torch.nan)
        _C.loss_of_sums(
            sums=sums.data_ptr(),
            charbonnier=sums[3].data_ptr(),
            valid=self.valid.data_ptr(),
            shape=tuple(self.prediction.shape),
            loss=loss.data_ptr(),
            capability=capability,
        )
        return loss

    def gradient(self, sums, dspectral=0.7, dcharbonnier=1.3, capability="", **options):
        """(dprediction, dbias), the latter on top of ones."""
        coefficients = torch.full((3, *self.valid.shape), torch.nan)
        _C.loss_coefficients(
            sums=sums.data_ptr(),
            valid=self.valid.data_ptr(),
            shape=tuple(self.prediction.shape),
            dspectral=dspectral,
            coefficients=coefficients.data_ptr(),
            capability=capability,
        )
        dprediction, dbias = self.prediction.clone(), torch.ones(self.bias.shape)
        _C.pixel_gradient(
            **self.tile(dprediction, capability=capability, **options),
            coefficients=coefficients.data_ptr(),
            plane=self.valid.numel(),
            slope=dcharbonnier / max(1, len(dprediction)),
            dbias=dbias.data_ptr(),
        )
        return dprediction, dbias

    def expected(self, dspectral=0.7, dcharbonnier=1.3):
        """(sums of valid pixels, loss, dprediction) in float64."""
        prediction = (self.prediction.double() + self.bias.double()[:, None]).requires_grad_()
        target = torch.where(self.valid, self.target.double(), 0.0)
        cu_bands = torch.tensor([0, len(prediction)], dtype=torch.int32)
        loss = torch.cat(reference.spectral_loss(prediction, target, self.valid[None], cu_bands))
        (dprediction,) = torch.autograd.grad(loss[0] * dspectral + loss[1] * dcharbonnier, prediction)
        p = prediction.detach()
        charbonnier = torch.sqrt(1 + (p - target) ** 2) - 1
        return torch.stack([p * p, p * target, target * target, charbonnier]).sum(dim=1), loss.detach(), dprediction


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, target_dtype, capability):
    sample = Sample(shape, dtype, target_dtype)
    expected_sums, expected_loss, expected_gradient = sample.expected()
    sums = sample.sums(capability=capability)
    assert_close(sums[:, sample.valid], expected_sums[:, sample.valid], TOLERANCE, "sums")
    assert_close(sample.loss(sums, capability), expected_loss, TOLERANCE, "loss")
    dprediction, dbias = sample.gradient(sums, capability=capability)
    assert torch.equal(dprediction[:, ~sample.valid], torch.zeros_like(dprediction[:, ~sample.valid]))
    rounding = {torch.float32: TOLERANCE, torch.bfloat16: 2**-8}[dtype]
    assert_close(dprediction, expected_gradient, rounding, "dprediction")
    assert_unbiased(dprediction, expected_gradient, rounding, "dprediction")
    assert_close(dbias, 1 + expected_gradient.sum(dim=1), TOLERANCE, "dbias")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_no_bit(shape):
    sample = Sample(shape)
    one, *others = (sample.sums(threads=threads) for threads in (1, 2, 3, 64))
    gradient, *gradients = (sample.gradient(one, threads=threads) for threads in (1, 2, 3, 64))
    for other in others:
        assert torch.equal(one[:, sample.valid], other[:, sample.valid])
    for other in gradients:
        assert all(torch.equal(a, b) for a, b in zip(gradient, other, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tiles_of_bands_and_tokens_add_up(capability):
    sample = Sample((13, 6, 10))
    whole = sample.sums(capability=capability)
    dprediction, dbias = sample.gradient(whole, capability=capability)
    coefficients = torch.empty(3, 6, 10)
    _C.loss_coefficients(
        sums=whole.data_ptr(),
        valid=sample.valid.data_ptr(),
        shape=(13, 6, 10),
        dspectral=0.7,
        coefficients=coefficients.data_ptr(),
        capability=capability,
    )
    sums, tiled, tiled_dbias = torch.zeros(4, 6, 10), sample.prediction.clone(), torch.ones(13, 10)
    for bands in (slice(0, 8), slice(8, 13)):
        for first, last in ((0, 2), (2, 6)):
            part = tiled[bands, first:last]
            tile = sample.tile(part, capability=capability) | {
                "target": sample.target[bands, first:last].data_ptr(),
                "bias": sample.bias[bands].data_ptr(),
            }
            charbonnier = sums[3, first:].data_ptr()
            _C.pixel_sums(**tile, sums=sums[0, first:].data_ptr(), plane=60, charbonnier=charbonnier)
            _C.pixel_gradient(
                **tile,
                coefficients=coefficients[0, first:].data_ptr(),
                plane=60,
                slope=1.3 / 13,
                dbias=tiled_dbias[bands].data_ptr(),
            )
    assert torch.equal(sums[:, sample.valid], whole[:, sample.valid])
    assert torch.equal(tiled, dprediction)
    assert_close(tiled_dbias, dbias.double(), TOLERANCE, "dbias")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_bias_and_no_dbias(capability):
    sample = Sample((5, 3, 20))
    sample.bias.zero_()
    expected, _, _ = sample.expected()
    sums = sample.sums(capability=capability, bias=0)
    assert_close(sums[:, sample.valid], expected[:, sample.valid], TOLERANCE)
    with_bias, without = sample.gradient(sums, capability=capability)[0], sample.prediction.clone()
    coefficients = torch.empty(3, 3, 20)
    shape = tuple(without.shape)
    _C.loss_coefficients(
        sums=sums.data_ptr(),
        valid=sample.valid.data_ptr(),
        shape=shape,
        dspectral=0.7,
        coefficients=coefficients.data_ptr(),
    )
    _C.pixel_gradient(
        **sample.tile(without, bias=0, capability=capability),
        coefficients=coefficients.data_ptr(),
        plane=60,
        slope=1.3 / 5,
    )
    assert_close(without, with_bias.double(), TOLERANCE)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_pixel_that_counts_and_is_not_finite_shows(capability):
    sample = Sample((4, 2, 20))
    sample.valid[1, 7] = True
    sample.target[:, 1, 7] = 1.0
    sample.target[2, 1, 7] = torch.nan
    sums = sample.sums(capability=capability)
    loss = sample.loss(sums, capability)
    assert loss[0].isnan()
    assert loss[1].isnan()
    assert sample.gradient(sums, capability=capability)[0][:, 1, 7].isnan().all()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_zero_prediction(capability):
    sample = Sample((4, 2, 20))
    sample.prediction.zero_()
    sample.bias.zero_()
    sums = sample.sums(capability=capability)
    assert sample.loss(sums, capability)[0] == sample.valid.sum()
    _, _, expected = sample.expected(dspectral=0.0)  # at the kink of the norm, only Charbonnier has a gradient
    gradient, _ = sample.gradient(sums, dspectral=0.0, capability=capability)
    assert_close(gradient, expected, TOLERANCE)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0)], ids=str)
def test_empty(shape):
    sample = Sample(shape)
    sums = sample.sums()
    assert not sums.any()
    assert sample.loss(sums).tolist() == [float(sample.valid.sum()), 0.0, float(sample.valid.sum())]
    dprediction, dbias = sample.gradient(sums)
    assert dprediction.shape == shape
    assert (dbias == 1).all()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_norm_below_the_epsilon_is_a_constant(capability):
    sample = Sample((4, 2, 20))
    sample.prediction.mul_(1e-10)
    sample.bias.zero_()
    _, _, expected = sample.expected(dcharbonnier=0.0)
    gradient, _ = sample.gradient(sample.sums(capability=capability), dcharbonnier=0.0, capability=capability)
    assert_close(gradient, expected, TOLERANCE)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_bfloat16_is_rounded_to_nearest_even_and_nan_stays(capability):
    """With no cosine and d^2 lost beside 1, the gradient is d = -target: what is stored is d, rounded."""
    low_bits = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    high_bits = torch.arange(0x3800, 0x3810, dtype=torch.int32)  # about 3e-5
    difference = ((high_bits[:, None] << 16) | low_bits).view(torch.float32).reshape(1, 3, 32)
    sample = Sample(difference.shape, torch.bfloat16)
    sample.prediction.zero_()
    sample.bias.zero_()
    sample.valid.fill_(True)
    sample.target = -difference
    sample.target.view(torch.int32)[0, 1, 5] = 0x7FFFFFFF  # a NaN that rounding alone would carry into a zero
    gradient, _ = sample.gradient(torch.ones(4, 3, 32), dspectral=0.0, dcharbonnier=1.0, capability=capability)
    assert gradient[0, 1, 5].isnan()
    gradient[0, 1, 5] = difference[0, 1, 5] = 0.0
    assert torch.equal(gradient, difference.bfloat16())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float64"}, "pixel_sums: prediction must be float32 or bfloat16 here; got float64"),
        ({"target_dtype": "int16"}, "pixel_sums: target must be float32 or bfloat16 here; got int16"),
        ({"shape": (3, -1, 4)}, r"shape must not be negative; got \[3, -1, 4\]"),
        ({"shape": (3, 4, 4)}, "plane must be at least the 16 pixels of the tile; got 8"),
        ({"threads": -2}, "threads must be positive; got -2"),
        ({"capability": "sse9"}, "capability: expected baseline, avx2 or avx512; got sse9"),
    ],
)
def test_refuses(changes, message):
    sample = Sample((3, 2, 4))
    with pytest.raises(ValueError, match=message):
        sample.sums(**changes)
